#include "torchlore/core/device.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

TEST(Device, TheDefaultDeviceHoldsTensors) {
  const auto device = default_device();
  EXPECT_EQ(device.is_cpu(), !accelerator_available());
  EXPECT_EQ(accelerator_available(), device_count() > 0);
  EXPECT_EQ(at::ones({3}, at::TensorOptions(device)).sum().item<float>(), 3);
  EXPECT_NO_THROW(synchronize(device));
  EXPECT_NO_THROW(empty_cache(device));
  EXPECT_NO_THROW(reset_peak_memory(device));
}

TEST(Device, TheCpuHasNothingToWaitForOrToCount) {
  const c10::Device cpu(c10::kCPU);
  EXPECT_NO_THROW(synchronize(cpu));
  EXPECT_NO_THROW(empty_cache(cpu));
  EXPECT_NO_THROW(reset_peak_memory(cpu));
  EXPECT_FALSE(device_memory(cpu).has_value());
}

TEST(Device, RefusesADeviceThatIsNotThere) {
  if (accelerator_available()) {
    const c10::Device none(default_device().type(), static_cast<c10::DeviceIndex>(device_count()));
    EXPECT_THROW(synchronize(none), c10::ValueError);
    return;
  }
  const c10::Device none("cuda:1");
  const std::string expected = "this machine has no cuda:1; it has 0 accelerators";
  EXPECT_EQ(message_of<c10::ValueError>([&] { synchronize(none); }), expected);
  EXPECT_EQ(message_of<c10::ValueError>([&] { empty_cache(none); }), expected);
  EXPECT_EQ(message_of<c10::ValueError>([&] { device_memory(none); }), expected);
  EXPECT_EQ(message_of<c10::ValueError>([&] { reset_peak_memory(none); }), expected);
}

TEST(Device, CountsTheAcceleratorsMemory) {
  if (!accelerator_available()) GTEST_SKIP() << "this machine has no accelerator";
  const auto device = default_device();
  const auto held = at::ones({1'000'000}, at::TensorOptions(device));
  reset_peak_memory(device);
  const auto before = device_memory(device).value();
  EXPECT_GE(before.allocated, 4'000'000);
  at::ones({2'000'000}, at::TensorOptions(device));
  const auto after = device_memory(device).value();
  EXPECT_EQ(after.allocated, before.allocated);
  EXPECT_GE(after.peak_allocated, before.allocated + 8'000'000);
  EXPECT_GE(after.peak_reserved, after.peak_allocated);
}

}  // namespace
}  // namespace torchlore
