#include "memory.hpp"

#include <c10/core/Allocator.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>

namespace torchlore::claims {

class AllocatorMeter::Counter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device device) override {
    if (!device.is_cpu()) return;
    const int64_t now = current_ += size;
    int64_t peak = peak_;
    while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
    }
  }
  bool memoryProfilingEnabled() const override { return true; }

  std::atomic<int64_t> current_ = 0;
  std::atomic<int64_t> peak_ = 0;
};

AllocatorMeter::AllocatorMeter()
    : counter_(std::make_shared<Counter>()), guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {}

int64_t AllocatorMeter::peak_bytes() const { return counter_->peak_; }

int64_t AllocatorMeter::current_bytes() const { return counter_->current_; }

void AllocatorMeter::reset_peak() { counter_->peak_ = counter_->current_.load(); }

namespace {

/// A field of /proc/self/status, in bytes.
int64_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

}  // namespace

int64_t resident_bytes() { return status_bytes("VmRSS"); }

int64_t peak_rss_bytes() { return status_bytes("VmHWM"); }

bool reset_peak_rss() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
  return static_cast<bool>(file.flush());
}

}  // namespace torchlore::claims
