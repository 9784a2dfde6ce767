#include "torchlore/memory/memory_meter.hpp"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "torchlore/core/device.hpp"

namespace torchlore {
namespace {

// Bytes in use, and the most since some meter last looked.
std::atomic<int64_t> cpu_current{0};
std::atomic<int64_t> cpu_peak{0};

void raise_to(std::atomic<int64_t>& peak, int64_t value) {
  int64_t seen = peak.load(std::memory_order_relaxed);
  while (value > seen && !peak.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

/// LibTorch's CPU allocator, with its bytes counted. Its pointers are LibTorch's own (context and
/// data are the same, as oneDNN's recurrent layers ask for), so the size is asked of malloc.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    auto data = inner().allocate(size);
    if (!data || !data.compare_exchange_deleter(inner().raw_deleter(), &release)) return data;
    const auto bytes = static_cast<int64_t>(malloc_usable_size(data.get()));
    const int64_t now = cpu_current.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    raise_to(cpu_peak, now);
    return data;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }

  static c10::Allocator& inner() { return *c10::GetDefaultCPUAllocator(); }

 private:
  static void release(void* data) {
    if (data == nullptr) return;
    const auto bytes = static_cast<int64_t>(malloc_usable_size(data));
    cpu_current.fetch_sub(bytes, std::memory_order_relaxed);
    inner().raw_deleter()(data);
  }
};

/// Puts the counting allocator in place, once.
void count_cpu_memory() {
  static std::once_flag once;
  std::call_once(once, [] {
    TORCH_CHECK_NOT_IMPLEMENTED(
        c10::GetCPUAllocator() == &CountingAllocator::inner(),
        "MemoryMeter counts LibTorch's own CPU allocator, but this process has set another one "
        "(c10::SetCPUAllocator), whose sizes are not known; make the first MemoryMeter before it "
        "is set, and let it pass requests on");
    static auto* allocator = new CountingAllocator;  // serves until the process ends
    constexpr uint8_t kHighest = 255;
    c10::SetCPUAllocator(allocator, kHighest);
  });
}

struct Reading {
  int64_t current = 0;
  int64_t peak = 0;  // not below `current`
};

Reading read(c10::Device device) {
  Reading now;
  if (device.is_cpu()) {
    now = {cpu_current.load(), cpu_peak.load()};
  } else if (const auto memory = device_memory(device)) {
    now = {memory->allocated, memory->peak_allocated};
  }
  return {now.current, std::max(now.current, now.peak)};
}

/// Reads, and starts the running peak anew.
Reading take(c10::Device device) {
  auto now = read(device);
  if (device.is_cpu()) {
    now.peak = std::max(now.peak, cpu_peak.exchange(now.current));
  } else {
    reset_peak_memory(device);
  }
  return now;
}

}  // namespace

/// What one meter has seen. A device has a single running peak: whoever starts it anew first hands it
/// to all meters of the device.
struct MemoryMeter::Count {
  explicit Count(c10::Device d) : device(d) {
    const std::lock_guard lock(mutex);
    start = peak = hand_out(device);
    all.push_back(this);
  }
  ~Count() {
    const std::lock_guard lock(mutex);
    std::erase(all, this);
  }
  Count(const Count&) = delete;
  Count(Count&&) = delete;
  Count& operator=(const Count&) = delete;
  Count& operator=(Count&&) = delete;

  /// Gives the running peak to every meter of the device, and starts it anew. Returns what is in
  /// use.
  static int64_t hand_out(c10::Device device) {
    const auto now = take(device);
    for (auto* count : all) {
      if (count->device == device) count->peak = std::max(count->peak, now.peak);
    }
    return now.current;
  }

  static inline std::mutex mutex;
  static inline std::vector<Count*> all;

  const c10::Device device;
  int64_t start = 0;
  int64_t peak = 0;
};

MemoryMeter::MemoryMeter(c10::Device device) {
  if (device.is_cpu()) {
    count_cpu_memory();
  } else {
    if (!device.has_index()) device = c10::Device(device.type(), default_device().index());
    device_memory(device);  // throws if there is no such device
  }
  count_ = std::make_unique<Count>(device);
}

MemoryMeter::~MemoryMeter() = default;

Bytes MemoryMeter::current() const { return Bytes(read(count_->device).current - count_->start); }

Bytes MemoryMeter::peak() const {
  const std::lock_guard lock(Count::mutex);
  return Bytes(std::max(count_->peak, read(count_->device).peak) - count_->start);
}

void MemoryMeter::reset_peak() {
  const std::lock_guard lock(Count::mutex);
  count_->peak = Count::hand_out(count_->device);
}

}  // namespace torchlore
