#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <string>

/// The machine's accelerator, whichever it is (CUDA, ROCm, XPU, MPS, …), and a machine without one,
/// through the same few functions.
namespace torchlore {

/// Bytes of an accelerator's memory, as its caching allocator counts them.
struct DeviceMemory {
  int64_t allocated = 0;       ///< held by tensors now
  int64_t peak_allocated = 0;  ///< the most ever held by tensors, since `reset_peak_memory`
  int64_t reserved = 0;        ///< held by the allocator, for tensors or in its cache
  int64_t peak_reserved = 0;   ///< the most ever held by the allocator
};

/// True if the machine has an accelerator that this LibTorch can use.
bool accelerator_available();

/// Number of accelerators; 0 without one.
int64_t device_count();

/// The current accelerator, or the CPU where there is none.
c10::Device default_device();

/// Waits until all work queued on the device is done; nothing to wait for on the CPU.
/// @throws c10::ValueError if the machine has no such device.
/// @note Host syncs: 1 (0 on the CPU).
void synchronize(c10::Device device);

/// Gives cached, unused memory of the device's allocator back to the driver; nothing on the CPU.
/// @throws c10::ValueError if the machine has no such device.
void empty_cache(c10::Device device);

/// The device's memory; nothing for the CPU, and for accelerators that do not count it.
/// @throws c10::ValueError if the machine has no such device.
std::optional<DeviceMemory> device_memory(c10::Device device);

/// Starts the peaks of `device_memory` anew; nothing on the CPU.
/// @throws c10::ValueError if the machine has no such device.
void reset_peak_memory(c10::Device device);

}  // namespace torchlore
