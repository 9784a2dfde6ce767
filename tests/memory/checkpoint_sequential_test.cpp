#include "torchlore/memory/checkpoint_sequential.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

#include "checkpoint_support.hpp"
#include "support/message.hpp"
#include "torchlore/core/rng.hpp"
#include "torchlore/memory/memory_meter.hpp"

namespace torchlore {
namespace {

using testing::expect_same_gradients;
using testing::leaf;
using testing::message_of;
using testing::same;
namespace nn = torch::nn;
using Options = CheckpointSequentialOptions;

constexpr int64_t kWidth = 64;
constexpr int64_t kRows = 256;
constexpr int64_t kBoundary = kRows * kWidth * 4;

/// Keeps 4 activations of the boundary's size, and a mask.
nn::Sequential make_block() {
  return nn::Sequential(nn::Linear(kWidth, kWidth), nn::GELU(), nn::Dropout(0.2), nn::Tanh());
}

std::vector<nn::Sequential> make_blocks(int64_t n) {
  std::vector<nn::Sequential> blocks;
  for (int64_t i = 0; i < n; ++i) blocks.push_back(make_block());
  return blocks;
}

at::Tensor plain(const std::vector<nn::Sequential>& blocks, at::Tensor x) {
  for (auto block : blocks) x = block->forward(x);
  return x;
}

std::vector<at::Tensor> tensors_of(const std::vector<nn::Sequential>& blocks, const at::Tensor& x) {
  std::vector<at::Tensor> tensors{x};
  for (const auto& block : blocks) {
    for (const auto& p : block->parameters()) tensors.push_back(p);
  }
  return tensors;
}

TEST(CheckpointSequential, GivesTheGradientsOfThePlainCallsForEveryPlan) {
  const auto blocks = make_blocks(7);
  const auto x = leaf({kRows, kWidth});
  for (const auto& options : {Options{}, Options{.segments = 1}, Options{.segments = 7},
                              Options{.budget = KiB(64 * 14)}, Options{.budget = GiB(1)}}) {
    expect_same_gradients(
        tensors_of(blocks, x), [&] { return plain(blocks, x).square().sum(); },
        [&] { return checkpoint_sequential(blocks, x, options).square().sum(); });
  }
}

TEST(CheckpointSequential, StaysWithinTheBudgetItWasGiven) {
  const auto blocks = make_blocks(12);
  const auto x = leaf({kRows, kWidth});
  const auto smallest =
      CheckpointPlan::smallest_budget(plan_checkpoints(blocks, x, GiB(1)).blocks());
  for (const double factor : {1.0, 1.5, 3.0}) {
    const Bytes budget(static_cast<int64_t>(static_cast<double>(smallest.count()) * factor));
    CheckpointPlan plan;
    MemoryMeter meter;
    auto y = checkpoint_sequential(blocks, x, {.budget = budget, .plan = &plan});
    y = at::Tensor();
    EXPECT_LE(plan.peak(), budget);
    meter.reset_peak();
    y = checkpoint_sequential(blocks, x, {.budget = budget, .plan = &plan});
    y.backward(at::ones_like(y));
    // The input is counted, but was there before. On top of the budget come the output, its gradient,
    // an op's own needs, the parameters' gradients and the random numbers' states.
    const int64_t parameters = 12 * (kWidth + 1) * kWidth * 4;
    EXPECT_LE(meter.peak().count(), budget.count() + 6 * kBoundary + parameters + 200'000);
    EXPECT_GE(meter.peak().count(), plan.peak().count() - kBoundary);
  }
}

TEST(CheckpointSequential, MeasuresWhatAutogradKeeps) {
  const auto blocks = make_blocks(3);
  const auto plan = plan_checkpoints(blocks, leaf({kRows, kWidth}), GiB(1));
  ASSERT_EQ(plan.blocks().size(), 3U);
  for (const auto& block : plan.blocks()) {
    EXPECT_EQ(block.input.count(), kBoundary);
    EXPECT_TRUE(block.input_saved);
    EXPECT_GT(block.seconds, 0);
    // The linear layer's output for GELU, and dropout's mask; Tanh keeps the output.
    EXPECT_GE(block.saved.count(), kBoundary + kBoundary / 4);
    EXPECT_LE(block.saved.count(), 2 * kBoundary + 4096);
  }
}

TEST(CheckpointSequential, MeasuringLeavesNoTrace) {
  nn::BatchNorm1d norm(kWidth);
  const std::vector<nn::Sequential> blocks{nn::Sequential(norm, nn::Dropout(0.5)),
                                           nn::Sequential(nn::ReLU(nn::ReLUOptions(true)))};
  const auto x = at::randn({kRows, kWidth});
  const auto before = x.clone();
  at::manual_seed(1);
  plan_checkpoints(blocks, x, GiB(1));
  const auto next = at::rand({3});
  at::manual_seed(1);
  EXPECT_TRUE(same(at::rand({3}), next));
  EXPECT_TRUE(same(x, before));
  EXPECT_EQ(norm->num_batches_tracked.item<int64_t>(), 0);
  EXPECT_TRUE(same(norm->running_mean, at::zeros({kWidth})));
}

TEST(CheckpointSequential, KeepsItsPlanWhileItFits) {
  const auto runs = std::make_shared<int>(0);
  const auto block = [runs](const at::Tensor& x) {
    ++*runs;
    return x.sin().exp();
  };
  const std::vector<std::function<at::Tensor(const at::Tensor&)>> blocks(4, block);
  CheckpointPlan plan;
  const auto run = [&](int64_t rows, Bytes budget) {
    *runs = 0;
    checkpoint_sequential(blocks, leaf({rows}), {.budget = budget, .plan = &plan});
    return *runs;
  };
  EXPECT_EQ(run(100, MiB(1)), 12);  // measured: two passes more
  EXPECT_EQ(run(100, MiB(1)), 4);
  EXPECT_EQ(run(50, MiB(1)), 4);
  EXPECT_EQ(run(200, MiB(1)), 12);
  EXPECT_EQ(run(200, MiB(2)), 12);
  EXPECT_EQ(plan.budget(), MiB(2));
}

TEST(CheckpointSequential, TakesBlocksOfManyKinds) {
  const auto x = leaf({5, 4});
  nn::Sequential sequential(nn::Linear(4, 4), nn::GELU(), nn::Linear(4, 4), nn::Tanh());
  expect_same_gradients(
      {x}, [&] { return sequential->forward(x).sum(); },
      [&] { return checkpoint_sequential(sequential, x, {.segments = 2}).sum(); });
  nn::ModuleList list(nn::Linear(4, 4), nn::Linear(4, 4));
  expect_same_gradients(
      {x},
      [&] {
        return list[1]->as<nn::Linear>()->forward(list[0]->as<nn::Linear>()->forward(x)).sum();
      },
      [&] { return checkpoint_sequential<nn::LinearImpl>(list, x, {.segments = 2}).sum(); });
  EXPECT_THROW(checkpoint_sequential<nn::GELUImpl>(list, x), c10::TypeError);
  const std::vector<std::function<at::Tensor(const at::Tensor&)>> functions{
      [](const at::Tensor& t) { return t.sin(); }, [](const at::Tensor& t) { return t.exp(); }};
  expect_same_gradients(
      {x}, [&] { return x.sin().exp().sum(); },
      [&] { return checkpoint_sequential(functions, x).sum(); });
  EXPECT_TRUE(checkpoint_sequential(std::vector<nn::Linear>(), x).is_same(x));
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(same(checkpoint_sequential(functions, x, {.budget = KiB(1)}), x.sin().exp()));
}

TEST(CheckpointSequential, NamesWhatIsWrong) {
  const auto blocks = make_blocks(3);
  const auto x = leaf({kRows, kWidth});
  EXPECT_EQ(message_of<c10::ValueError>(
                [&] { checkpoint_sequential(blocks, x, {.budget = MiB(1), .segments = 2}); }),
            "checkpoint_sequential was given both a budget and a number of segments; give one of "
            "them");
  EXPECT_EQ(
      message_of<c10::ValueError>([&] { checkpoint_sequential(blocks, x, {.segments = -1}); }),
      "segments must be a finite number, 0 or above, but is -1");
  const auto text =
      message_of<c10::ValueError>([&] { checkpoint_sequential(blocks, x, {.budget = KiB(10)}); });
  EXPECT_EQ(text.find("a budget of 10 KiB is below the smallest that these 3 blocks can do with, "),
            0U)
      << text;
}

}  // namespace
}  // namespace torchlore
