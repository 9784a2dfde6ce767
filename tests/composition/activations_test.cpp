// What TrainingStep's activations stage must leave equal, beside every other stage.
//
// Each row trains the same small model twice, with the stage and without it, and compares the loss curve
// and the final parameters. Stages that only move or recompute values must agree bit for bit.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "composition/loops.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 12;
constexpr int64_t kBatch = 16;
constexpr double kLearningRate = 0.02;

struct Outcome {
  std::vector<double> losses;
  at::Tensor parameters;
};

Outcome train(const TrainingStepOptions& options) {
  at::set_num_threads(1);  // the nets are tiny
  at::manual_seed(11);
  torch::nn::Sequential net(torch::nn::Linear(8, 24), torch::nn::GELU(), torch::nn::Dropout(0.1),
                            torch::nn::Linear(24, 4));
  const auto x = at::randn({kBatch, 8});
  const auto y = at::randint(4, {kBatch}, at::kLong);
  torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(kLearningRate));
  TrainingStep step(optimizer, options);
  Outcome outcome;
  for (int i = 0; i < kSteps; ++i) {
    const auto loss = [&] { return torch::nn::functional::cross_entropy(net->forward(x), y); };
    outcome.losses.push_back(step(loss).loss());
  }
  step.finish();
  std::vector<at::Tensor> flat;
  for (const auto& p : net->parameters()) flat.push_back(p.detach().reshape(-1));
  outcome.parameters = at::cat(flat);
  return outcome;
}

struct Stage {
  std::string name;
  Activations activations;
  double tolerance;  // of parameters and losses; 0: bit for bit
};

std::vector<Stage> stages() {
  return {
      {"offload",
       Activations::offload({.folder = std::filesystem::temp_directory_path(), .min_bytes = 0}), 0},
      {"budget", Activations::budget(Bytes(0)), 0},
      {"compress", Activations::compress(at::kBFloat16, {.min_bytes = 0}), 2e-2},
  };
}

class ActivationsStage : public ::testing::TestWithParam<std::tuple<Stage, testing::Loop>> {};

TEST_P(ActivationsStage, LeavesTheTrainingAsItIs) {
  const auto& [stage, loop] = GetParam();
  auto options = loop.options;
  const auto without = train(options);
  options.activations = stage.activations;
  const auto with = train(options);
  for (int i = 0; i < kSteps; ++i) {
    const auto n = static_cast<size_t>(i);
    EXPECT_NEAR(with.losses[n], without.losses[n], stage.tolerance) << "step " << i;
  }
  EXPECT_LE((with.parameters - without.parameters).abs().max().item<double>(), stage.tolerance);
}

INSTANTIATE_TEST_SUITE_P(Pairs, ActivationsStage,
                         ::testing::Combine(::testing::ValuesIn(stages()),
                                            ::testing::ValuesIn(testing::loops())),
                         [](const auto& row) {
                           return std::get<0>(row.param).name + "_" + std::get<1>(row.param).name;
                         });

}  // namespace
}  // namespace torchlore
