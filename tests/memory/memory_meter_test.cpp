#include "torchlore/memory/memory_meter.hpp"

#include <ATen/Functions.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/rnn.h>

#include <thread>

#include "support/message.hpp"
#include "torchlore/core/device.hpp"

namespace torchlore {
namespace {

using testing::message_of;

/// Equal up to what malloc adds to each allocation.
void expect_bytes(Bytes actual, int64_t expected, int64_t allocations = 1) {
  EXPECT_GE(actual.count(), expected);
  EXPECT_LE(actual.count(), expected + 4096 * allocations);
}

at::Tensor bytes(int64_t count) { return at::empty({count}, at::kByte); }

constexpr int64_t kMiB = 1 << 20;

TEST(MemoryMeter, CountsWhatIsInUseAndTheMost) {
  const MemoryMeter meter;
  auto a = bytes(kMiB);
  expect_bytes(meter.current(), kMiB);
  auto b = bytes(2 * kMiB);
  expect_bytes(meter.current(), 3 * kMiB, 2);
  a = at::Tensor();
  expect_bytes(meter.current(), 2 * kMiB);
  b = at::Tensor();
  EXPECT_EQ(meter.current(), Bytes(0));
  expect_bytes(meter.peak(), 3 * kMiB, 2);
}

TEST(MemoryMeter, StartsThePeakAnew) {
  MemoryMeter meter;
  bytes(4 * kMiB);
  const auto kept = bytes(kMiB);
  expect_bytes(meter.peak(), 4 * kMiB);
  meter.reset_peak();
  expect_bytes(meter.peak(), kMiB);
  bytes(kMiB);
  expect_bytes(meter.peak(), 2 * kMiB, 2);
}

TEST(MemoryMeter, EachOfSeveralHasAPeakOfItsOwn) {
  const MemoryMeter outer;
  bytes(8 * kMiB);
  const auto kept = bytes(kMiB);
  auto first = std::make_unique<MemoryMeter>();
  bytes(2 * kMiB);
  const MemoryMeter second;
  bytes(4 * kMiB);
  expect_bytes(outer.peak(), 8 * kMiB);
  expect_bytes(first->peak(), 4 * kMiB);
  expect_bytes(second.peak(), 4 * kMiB);
  first.reset();  // not the innermost
  bytes(16 * kMiB);
  expect_bytes(second.peak(), 16 * kMiB);
  expect_bytes(outer.peak(), 17 * kMiB, 2);
}

TEST(MemoryMeter, CountsAllThreads) {
  const MemoryMeter meter;
  auto made = bytes(kMiB);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int k = 0; k < 2000; ++k) bytes(1000 + k);
    });
  }
  threads.emplace_back([&] { made = at::Tensor(); });  // freed by another thread
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(meter.current(), Bytes(0));
  expect_bytes(meter.peak(), kMiB, 4);
}

TEST(MemoryMeter, FreeingWhatWasThereBeforeCountsBelowTheStart) {
  auto before = bytes(kMiB);
  const MemoryMeter meter;
  before = at::Tensor();
  EXPECT_LE(meter.current(), Bytes(-kMiB));
  EXPECT_EQ(meter.peak(), Bytes(0));
}

TEST(MemoryMeter, KeepsAlignmentAndSmallAndEmptyTensors) {
  const MemoryMeter meter;
  for (int64_t size : {0, 1, 63, 64, 65, 100'000}) {
    const auto t = bytes(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 64, 0U) << size;
  }
  EXPECT_EQ(meter.current(), Bytes(0));
}

TEST(MemoryMeter, RecurrentLayersRunUnderIt) {
  const MemoryMeter meter;
  torch::nn::LSTM lstm(torch::nn::LSTMOptions(16, 16).num_layers(2));
  const auto y = std::get<0>(lstm->forward(at::randn({4, 2, 16})));
  y.sum().backward();
  EXPECT_GT(meter.peak(), Bytes(0));
}

TEST(MemoryMeter, RefusesADeviceThatIsNotThere) {
  const c10::Device missing(c10::kCUDA, 99);
  EXPECT_THROW(MemoryMeter{missing}, c10::ValueError);
}

TEST(MemoryMeter, MeasuresTheAccelerator) {
  if (!accelerator_available()) GTEST_SKIP() << "no accelerator";
  const auto options = at::TensorOptions(default_device()).dtype(at::kByte);
  const MemoryMeter outer(default_device());
  at::empty({8 * kMiB}, options);
  const MemoryMeter meter(default_device());
  const auto kept = at::empty({kMiB}, options);
  at::empty({2 * kMiB}, options);
  expect_bytes(meter.current(), kMiB);
  expect_bytes(meter.peak(), 3 * kMiB, 2);
  expect_bytes(outer.peak(), 8 * kMiB);
}

}  // namespace
}  // namespace torchlore
