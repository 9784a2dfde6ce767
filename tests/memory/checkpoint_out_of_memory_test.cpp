#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

#include "support/out_of_memory.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;

/// Two checkpointed blocks, one of them nested, with dropout and running statistics.
struct Step {
  Step() {
    at::manual_seed(1);
    first = nn::Sequential(nn::Linear(6, 8), nn::BatchNorm1d(8), nn::GELU(), nn::Dropout(0.3));
    second = nn::Sequential(nn::Linear(8, 8), nn::Tanh());
    third = nn::Sequential(nn::Linear(8, 4), nn::Dropout(0.2));
    x = at::randn({5, 6}).set_requires_grad(true);
    for (const auto& block : {first, second, third}) {
      for (const auto& p : block->parameters()) parameters.push_back(p);
    }
    for (const auto& b : first->buffers()) start.push_back(b.clone());
  }

  std::vector<at::Tensor> run() {
    at::manual_seed(7);
    clear();
    {
      const at::NoGradGuard no_grad;
      auto buffers = first->buffers();
      for (size_t i = 0; i < buffers.size(); ++i) buffers[i].copy_(start[i]);
    }
    at::Tensor loss;
    {
      const Autocast amp(at::kCPU, at::kBFloat16, {.enabled = autocast});
      auto y = checkpoint(first, x);
      y = checkpoint(
          [s = second, t = third](const at::Tensor& h) { return checkpoint(t, checkpoint(s, h)); },
          y);
      loss = y.to(at::kFloat).square().mean();
    }
    loss.backward();
    std::vector<at::Tensor> result{loss.detach(), x.grad(), at::rand({2})};
    for (const auto& p : parameters) result.push_back(p.grad());
    for (const auto& b : first->buffers()) result.push_back(b.clone());
    return result;
  }

  void clear() const {
    x.mutable_grad() = at::Tensor();
    for (const auto& p : parameters) p.mutable_grad() = at::Tensor();
  }

  nn::Sequential first{nullptr}, second{nullptr}, third{nullptr};
  at::Tensor x;
  std::vector<at::Tensor> parameters, start;
  bool autocast = false;
};

class CheckpointOutOfMemory : public ::testing::TestWithParam<bool> {};

TEST_P(CheckpointOutOfMemory, ComesOutTypedAndLeavesNothingBehind) {
  Step step;
  step.autocast = GetParam();
  const auto outcome =
      testing::fail_at_every_allocation([&] { return step.run(); }, [&] { step.clear(); });
  EXPECT_GT(outcome.allocations, 100);
  EXPECT_EQ(outcome.not_thrown, 0);
  EXPECT_EQ(outcome.other_type, 0) << outcome.first_other;
  EXPECT_EQ(outcome.leaked_bytes, 0);
  EXPECT_EQ(outcome.next_unlike, 0);
}

INSTANTIATE_TEST_SUITE_P(Precision, CheckpointOutOfMemory, ::testing::Bool());

}  // namespace
}  // namespace torchlore
