#pragma once

#include <c10/util/ThreadLocalDebugInfo.h>

#include <cstdint>
#include <memory>

namespace torchlore::claims {

/// Counts the bytes that LibTorch's CPU allocator hands out to this thread and to the autograd work
/// it starts, while it lives. Uses the slot of LibTorch's profiler: not beside it.
class AllocatorMeter {
 public:
  AllocatorMeter();
  /// The most bytes that were in use at once, above what was in use when the meter was made.
  int64_t peak_bytes() const;
  int64_t current_bytes() const;
  /// Counts the peak anew from what is in use now.
  void reset_peak();

 private:
  class Counter;
  std::shared_ptr<Counter> counter_;
  c10::DebugInfoGuard guard_;
};

/// The memory that is resident in this process now, in bytes (VmRSS).
int64_t resident_bytes();
/// The most memory that was resident in this process, in bytes (VmHWM).
int64_t peak_rss_bytes();
/// Starts counting `peak_rss_bytes` anew. Returns false where the system does not allow it.
bool reset_peak_rss();

}  // namespace torchlore::claims
