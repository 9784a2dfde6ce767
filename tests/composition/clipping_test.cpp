// Every way to clip beside every loop: a TrainingStep and the same loop written by hand, with
// `Clip::clip_`, give the same losses and parameters, bit for bit.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "composition/loops.hpp"
#include "torchlore/core/gradient_pass.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 16;
constexpr int64_t kBatch = 8;

struct Model {
  Model() {
    at::set_num_threads(1);  // the net is tiny
    at::manual_seed(11);
    net = torch::nn::Sequential(torch::nn::Linear(8, 24), torch::nn::GELU(),
                                torch::nn::Linear(24, 4));
    x = at::randn({kSteps * kBatch, 8});
    x.slice(0, 12 * kBatch, 13 * kBatch).mul_(30);  // a spike, after the warm-up
    y = at::randint(4, {kSteps * kBatch}, at::kLong);
  }
  at::Tensor loss(int64_t i) {
    const auto part = [&](const at::Tensor& t) { return t.slice(0, i * kBatch, (i + 1) * kBatch); };
    return torch::nn::functional::cross_entropy(net->forward(part(x)), part(y));
  }
  torch::nn::Sequential net{nullptr};
  at::Tensor x, y;
};

struct Outcome {
  std::vector<double> losses;
  std::vector<at::Tensor> parameters;
};

Outcome with_step(const TrainingStepOptions& options) {
  Model model;
  torch::optim::AdamW optimizer(model.net->parameters(), torch::optim::AdamWOptions(0.02));
  TrainingStep step(optimizer, options);
  Outcome outcome;
  for (int i = 0; i < kSteps; ++i) {
    outcome.losses.push_back(step([&] { return model.loss(i); }).loss());
  }
  outcome.parameters = model.net->parameters();
  return outcome;
}

Outcome by_hand(TrainingStepOptions options) {
  Model model;
  torch::optim::AdamW optimizer(model.net->parameters(), torch::optim::AdamWOptions(0.02));
  auto scaler_options = options.precision.scaler().value_or(LossScalerOptions{.enabled = false});
  LossScaler scaler(scaler_options);
  GradientAccumulator window(options.accumulate);
  Outcome outcome;
  for (int i = 0; i < kSteps; ++i) {
    if (window.empty()) optimizer.zero_grad();
    at::Tensor loss;
    {
      std::optional<Autocast> amp;
      if (options.precision.dtype()) amp.emplace(at::kCPU, *options.precision.dtype());
      loss = model.loss(i);
    }
    outcome.losses.push_back(loss.item<double>());
    scaler.scale(window.add(loss)).backward();
    if (!window.full()) continue;
    const auto divisor = window.divisor() * scaler.scale_tensor(at::kCPU);
    window.reset();
    const auto found_inf = gradient_stats(gradients(optimizer)).found_inf;
    scaler.update_from(found_inf);
    if (found_inf.item<float>() != 0) continue;
    options.clip.clip_(optimizer, {.divisor = divisor});
    optimizer.step();
  }
  outcome.parameters = model.net->parameters();
  return outcome;
}

struct Way {
  std::string name;
  Clip clip;
};

std::vector<Way> ways() {
  return {{"value", clip::value(0.02)},
          {"schedule", clip::norm(clip::threshold::exponential(0.5, 0.1, 8))},
          {"infinity_norm", clip::norm(0.05, {.norm_type = kNoClip})},
          {"autoclip", clip::autoclip(40)},
          {"zclip", clip::zclip({.alpha = 0.9, .z_threshold = 1.0, .warmup = 2})},
          {"agc", clip::agc({.clipping = 0.02})}};
}

class ClippingStage : public ::testing::TestWithParam<std::tuple<Way, testing::Loop>> {};

TEST_P(ClippingStage, EqualsTheLoopByHand) {
  const auto& [way, loop] = GetParam();
  auto options = loop.options;
  options.clip = way.clip;
  const auto ours = with_step(options);
  const auto theirs = by_hand(options);
  EXPECT_EQ(ours.losses, theirs.losses);
  options.clip = clip::none();
  const auto unclipped = with_step(options);
  bool clips = false;
  for (size_t i = 0; i < ours.parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(ours.parameters[i], theirs.parameters[i])) << i;
    clips = clips || !at::equal(ours.parameters[i], unclipped.parameters[i]);
  }
  EXPECT_TRUE(clips);
}

INSTANTIATE_TEST_SUITE_P(Pairs, ClippingStage,
                         ::testing::Combine(::testing::ValuesIn(ways()),
                                            ::testing::ValuesIn(testing::loops())),
                         [](const auto& row) {
                           return std::get<0>(row.param).name + "_" + std::get<1>(row.param).name;
                         });

}  // namespace
}  // namespace torchlore
