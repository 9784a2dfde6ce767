// What a PrecisionFallback must leave equal, beside every other stage: float16 that never falls back is
// float16, and one that has fallen back is the other precision, bit for bit.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

#include <string>
#include <tuple>
#include <vector>

#include "composition/loops.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 12;

/// The stages beside precision.
std::vector<testing::Loop> other_stages() {
  return {
      {"alone", {}},
      {"accumulation", {.accumulate = Accumulate::batches(4)}},
      {"clipping", {.clip = clip::norm(0.2)}},
      {"adaptive_clipping", {.clip = clip::autoclip(10)}},
      {"schedule", {.schedule = schedule::cosine(kSteps)}},
      {"spike_guard", {.spike = SpikeGuardOptions{}}},
      {"retry", {.retry = RetryOptions{}}},
      {"split", {.split = SplitOptions{}}},
      {"offload",
       {.activations = Activations::offload({.folder = ::testing::TempDir(), .min_bytes = 0})}},
  };
}

struct Outcome {
  std::vector<double> losses;
  at::Tensor parameters;
};

Outcome train(TrainingStepOptions options, const Precision& precision, bool fallen_back) {
  at::set_num_threads(1);  // the nets are tiny
  at::manual_seed(11);
  torch::nn::Sequential net(torch::nn::Linear(8, 24), torch::nn::GELU(), torch::nn::Dropout(0.1),
                            torch::nn::Linear(24, 4));
  const auto x = at::randn({16, 8});
  const auto y = at::randint(4, {16}, at::kLong);
  FusedAdamW optimizer(net->parameters(), torch::optim::AdamWOptions(0.02));
  options.precision = precision;
  TrainingStep step(optimizer, std::move(options));
  if (fallen_back) {
    auto state = step.state_dict();
    state["fallback/fallen_back"] = state_value(int64_t{1});
    step.load_state_dict(state);
  }
  Outcome outcome;
  for (int i = 0; i < kSteps; ++i) {
    const auto r = step(x, [&](const at::Tensor& part) {
      return torch::nn::functional::cross_entropy(net->forward(part), y.slice(0, 0, part.size(0)));
    });
    outcome.losses.push_back(r.loss());
  }
  EXPECT_EQ(fallen_back, step.fallback() != nullptr && step.fallback()->fallen_back());
  std::vector<at::Tensor> flat;
  for (const auto& p : net->parameters()) flat.push_back(p.detach().reshape(-1));
  outcome.parameters = at::cat(flat);
  return outcome;
}

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_TRUE(a.parameters.equal(b.parameters));
}

class FallbackStage : public ::testing::TestWithParam<testing::Loop> {};

TEST_P(FallbackStage, IdleItIsFloat16) {
  const auto& options = GetParam().options;
  expect_same(train(options, testing::fp16().with_fallback(), false),
              train(options, testing::fp16(), false));
}

TEST_P(FallbackStage, FallenBackItIsTheOtherPrecision) {
  const auto& options = GetParam().options;
  expect_same(train(options, testing::fp16().with_fallback(), true),
              train(options, Precision::bf16(), false));
  expect_same(train(options, testing::fp16().with_fallback({.to = at::kFloat}), true),
              train(options, Precision::fp32(), false));
}

INSTANTIATE_TEST_SUITE_P(Pairs, FallbackStage, ::testing::ValuesIn(other_stages()),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace torchlore
