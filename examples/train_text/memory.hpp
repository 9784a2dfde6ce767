#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <torchlore/core/device.hpp>

namespace text {

/// Starts the count of peak memory afresh.
inline void reset_peak_memory(c10::Device device) {
  // Where there is no such file, the peak is that of the process.
  if (device.is_cpu()) std::ofstream("/proc/self/clear_refs") << 5;
  torchlore::reset_peak_memory(device);
}

/// Bytes: what the accelerator's allocator gave out at most, or this process's peak resident set.
inline int64_t peak_memory(c10::Device device) {
  if (const auto memory = torchlore::device_memory(device)) return memory->peak_allocated;
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

}  // namespace text
