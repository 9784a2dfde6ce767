#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include "support/message.hpp"
#include "torchlore/memory/memory_meter.hpp"

namespace torchlore {
namespace {

/// Somebody else's allocator.
struct Foreign final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    return c10::GetDefaultCPUAllocator()->allocate(size);
  }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }
};

// In a program of its own: the first meter of a process decides.
TEST(MemoryMeter, RefusesToCountAnAllocatorThatIsNotLibTorchs) {
  static Foreign foreign;
  c10::SetCPUAllocator(&foreign, 1);
  EXPECT_EQ(testing::message_of<c10::NotImplementedError>([] { MemoryMeter(); }),
            "MemoryMeter counts LibTorch's own CPU allocator, but this process has set another one "
            "(c10::SetCPUAllocator), whose sizes are not known; make the first MemoryMeter before "
            "it is set, and let it pass requests on");
  c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), 1);
  const MemoryMeter meter;  // a refusal is not for good
  const auto t = at::empty({1000});
  EXPECT_GE(meter.current(), Bytes(4000));
}

}  // namespace
}  // namespace torchlore
