#include "torchlore/core/device.hpp"

#include <ATen/DeviceAccelerator.h>

namespace torchlore {
namespace {

/// The device's caching allocator, if it has one and has been used.
c10::DeviceAllocator* caching_allocator(c10::Device device) {
  if (device.is_cpu()) return nullptr;
  auto* allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  return allocator != nullptr && allocator->initialized() ? allocator : nullptr;
}

/// The device's index, or the current one's if it names none; 0 for the CPU.
c10::DeviceIndex checked_index(c10::Device device) {
  if (device.is_cpu()) return 0;
  const auto type = at::accelerator::getAccelerator();
  const auto count = type.has_value() ? at::accelerator::deviceCount() : c10::DeviceIndex{0};
  TORCH_CHECK_VALUE(type == device.type() && device.index() < count, "this machine has no ", device,
                    "; it has ", static_cast<int>(count), " accelerators",
                    count > 0 ? c10::str(" of type ", *type) : "");
  return device.has_index() ? device.index() : at::accelerator::getDeviceIndex();
}

}  // namespace

int64_t device_count() {
  return at::accelerator::getAccelerator().has_value() ? at::accelerator::deviceCount() : 0;
}

bool accelerator_available() { return device_count() > 0; }

c10::Device default_device() {
  if (!accelerator_available()) return c10::Device(c10::kCPU);
  return {*at::accelerator::getAccelerator(), at::accelerator::getDeviceIndex()};
}

void synchronize(c10::Device device) {
  const auto index = checked_index(device);
  if (!device.is_cpu()) at::accelerator::synchronizeDevice(index);
}

void empty_cache(c10::Device device) {
  checked_index(device);
  if (auto* allocator = caching_allocator(device)) allocator->emptyCache();
}

std::optional<DeviceMemory> device_memory(c10::Device device) {
  const auto index = checked_index(device);
  auto* allocator = caching_allocator(device);
  if (allocator == nullptr) return std::nullopt;
  const auto stats = allocator->getDeviceStats(index);
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto& allocated = stats.allocated_bytes.at(kAll);
  const auto& reserved = stats.reserved_bytes.at(kAll);
  return DeviceMemory{allocated.current, allocated.peak, reserved.current, reserved.peak};
}

void reset_peak_memory(c10::Device device) {
  const auto index = checked_index(device);
  if (auto* allocator = caching_allocator(device)) allocator->resetPeakStats(index);
}

}  // namespace torchlore
