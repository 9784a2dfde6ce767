// The spike guard beside every other stage: it leaves a clean run as it is, bit for bit, and keeps a
// poisoned batch out of it.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "composition/loops.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 16;
constexpr int64_t kBatch = 8;

struct Model {
  Model() {
    at::set_num_threads(1);  // the net is tiny
    at::manual_seed(11);
    net = torch::nn::Sequential(torch::nn::Linear(8, 24), torch::nn::BatchNorm1d(24),
                                torch::nn::GELU(), torch::nn::Linear(24, 4));
    x = at::randn({kSteps * kBatch, 8});
    y = at::randint(4, {kSteps * kBatch}, at::kLong);
  }
  at::Tensor loss(int64_t i) {
    const auto part = [&](const at::Tensor& t) { return t.slice(0, i * kBatch, (i + 1) * kBatch); };
    return torch::nn::functional::cross_entropy(net->forward(part(x)), part(y));
  }
  torch::nn::Sequential net{nullptr};
  at::Tensor x, y;
};

StateDict copy_of(const Model& model) {
  auto state = module_state_dict(*model.net);
  for (auto& [key, value] : state) value = value.clone();
  return state;
}

/// Names of the tensors that differ.
std::vector<std::string> differences(const StateDict& a, const StateDict& b) {
  std::vector<std::string> names;
  for (const auto& [key, value] : a) {
    if (!at::equal(value, b.at(key))) names.push_back(key);
  }
  return names;
}

std::vector<testing::Loop> loops() {
  auto all = testing::loops();
  all.push_back({"autoclip", {.clip = clip::autoclip(40)}});
  all.push_back({"zclip", {.clip = clip::zclip({.alpha = 0.9, .z_threshold = 1, .warmup = 2})}});
  all.push_back({"agc", {.clip = clip::agc({.clipping = 0.02})}});
  all.push_back({"schedule", {.schedule = schedule::warmup(3).then(schedule::cosine(20))}});
  return all;
}

class SpikeStage : public ::testing::TestWithParam<testing::Loop> {};

template <typename Optimizer>
StateDict train(TrainingStepOptions options, bool guarded) {
  Model model;
  Optimizer optimizer(model.net->parameters(), torch::optim::AdamWOptions(0.02));
  if (guarded) options.spike = SpikeGuardOptions{.model = &*model.net};
  TrainingStep step(optimizer, options);
  for (int i = 0; i < kSteps; ++i) step([&] { return model.loss(i); });
  EXPECT_EQ(guarded ? step.spike_guard()->spikes() : 0, 0);
  return copy_of(model);
}

TEST_P(SpikeStage, LeavesACleanRunAsItIs) {
  const auto& options = GetParam().options;
  using torch::optim::AdamW;
  EXPECT_EQ(differences(train<AdamW>(options, true), train<AdamW>(options, false)),
            std::vector<std::string>{});
}

TEST_P(SpikeStage, LeavesACleanRunWithAFusedOptimizerAsItIs) {
  const auto& options = GetParam().options;
  EXPECT_EQ(differences(train<FusedAdamW>(options, true), train<FusedAdamW>(options, false)),
            std::vector<std::string>{});
}

/// Windows of poisoned batches change nothing but batch norm's count of batches seen by the model;
/// the second one also takes back what was stepped since the snapshot.
TEST_P(SpikeStage, KeepsPoisonedWindowsOut) {
  Model model;
  torch::optim::AdamW optimizer(model.net->parameters(), torch::optim::AdamWOptions(0.02));
  auto options = GetParam().options;
  options.spike = SpikeGuardOptions{.model = &*model.net};
  TrainingStep step(optimizer, options);
  const auto size = options.accumulate.size();
  for (int64_t i = 0; i < 2 * size; ++i) step([&] { return model.loss(i); });
  ASSERT_EQ(step.steps(), 2);
  const auto before = copy_of(model);
  model.x.slice(0, 8 * kBatch, 16 * kBatch).fill_(std::numeric_limits<double>::infinity());
  const auto window = [&] {
    StepResult result;
    for (int64_t i = 0; i < size; ++i) result = step([&] { return model.loss(8 + i); });
    return result;
  };
  EXPECT_EQ(window().outcome(), StepResult::Outcome::skipped);
  EXPECT_EQ(differences(copy_of(model), before), std::vector<std::string>{});
  EXPECT_EQ(window().outcome(), StepResult::Outcome::rolled_back);
  EXPECT_EQ(step.steps(), 2);
  EXPECT_EQ(step.spike_guard()->rate_factor(), 0.5);
  for (const auto& [key, value] : copy_of(model)) {
    EXPECT_TRUE(value.isfinite().all().item<bool>()) << key;
  }
  StepResult result;
  for (int64_t i = 0; i < size; ++i) result = step([&] { return model.loss(i); });
  EXPECT_TRUE(result.stepped());
}

INSTANTIATE_TEST_SUITE_P(Pairs, SpikeStage, ::testing::ValuesIn(loops()),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace torchlore
