// What TrainingStep's retry and split must leave equal, beside every other stage.
//
// Each row trains the same small model twice, undisturbed and with faults, and compares the loss curve
// and the final parameters: bit for bit, or to rounding where the batch ran in parts.
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
#include "support/fails_in_backward.hpp"
#include "support/fake_clock.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 12;
constexpr int64_t kBatch = 16;
constexpr double kLearningRate = 0.02;
using Data = std::tuple<at::Tensor, at::Tensor>;

struct Stage {
  std::string name;
  bool retry = false;
  bool split = false;
  bool faults = false;   // every micro-batch fails once, or every part of more than 5
  double tolerance = 0;  // of parameters and losses; 0: bit for bit

  /// Dropout draws other masks for parts than for the whole.
  double dropout() const { return split && faults ? 0.0 : 0.1; }
};

std::vector<Stage> stages() {
  return {
      {.name = "idle_retry", .retry = true},
      {.name = "idle_split", .split = true},
      {.name = "retry", .retry = true, .faults = true},
      {.name = "split", .split = true, .faults = true, .tolerance = 2e-2},
      {.name = "retry_split", .retry = true, .split = true, .faults = true, .tolerance = 2e-2},
  };
}

/// The loops of all stages, and those of activations.
std::vector<testing::Loop> all_loops() {
  auto loops = testing::loops();
  loops.push_back(
      {"compress", {.activations = Activations::compress(at::kBFloat16, {.min_bytes = 0})}});
  loops.push_back({"budget", {.activations = Activations::budget(Bytes(0))}});
  loops.push_back({"spike_guard", {.spike = SpikeGuardOptions{}}});
  loops.push_back({"fallback", {.precision = testing::fp16().with_fallback()}});
  loops.push_back({"schedule", {.schedule = schedule::cosine(kSteps)}});
  return loops;
}

struct Outcome {
  std::vector<double> losses;
  at::Tensor parameters;
};

class Training {
 public:
  Training(const Stage& stage, double p, const TrainingStepOptions& options) : stage_(stage) {
    at::set_num_threads(1);  // the nets are tiny
    at::manual_seed(11);
    first_ =
        torch::nn::Sequential(torch::nn::Linear(8, 24), torch::nn::GELU(), torch::nn::Dropout(p));
    second_ = torch::nn::Linear(24, 4);
    auto parameters = first_->parameters();
    for (const auto& parameter : second_->parameters()) parameters.push_back(parameter);
    optimizer_ =
        std::make_unique<FusedAdamW>(parameters, torch::optim::AdamWOptions(kLearningRate));
    auto with = options;
    if (stage.retry) with.retry = RetryOptions{.clock = time_.clock()};
    if (stage.split) with.split = SplitOptions{};
    step_ = std::make_unique<TrainingStep>(*optimizer_, with);
    batch_ = {at::randn({kBatch, 8}), at::randint(4, {kBatch}, at::kLong)};
  }

  Outcome run() {
    Outcome outcome;
    for (int i = 0; i < kSteps; ++i) {
      bool failed = !stage_.faults || stage_.split;
      const auto r = (*step_)(batch_, [&](const Data& data) {
        const auto& [x, y] = data;
        auto loss =
            torch::nn::functional::cross_entropy(second_->forward(checkpoint(first_, x)), y);
        if (!failed || (stage_.faults && stage_.split && x.size(0) > 5)) {
          failed = true;
          loss = testing::FailsInBackward::apply(loss);
        }
        return loss;
      });
      outcome.losses.push_back(r.loss());
    }
    step_->finish();
    std::vector<at::Tensor> flat;
    for (const auto& group : optimizer_->param_groups()) {
      for (const auto& p : group.params()) flat.push_back(p.detach().reshape(-1));
    }
    outcome.parameters = at::cat(flat);
    if (stage_.faults && stage_.retry && !stage_.split) {
      EXPECT_EQ(time_.waits.size(), static_cast<size_t>(kSteps));
    }
    if (stage_.faults && stage_.split) {
      EXPECT_EQ(step_->sizes()->fits(), 4);
    }
    return outcome;
  }

 private:
  Stage stage_;
  testing::FakeClock time_;
  torch::nn::Sequential first_{nullptr};
  torch::nn::Linear second_{nullptr};
  std::unique_ptr<FusedAdamW> optimizer_;
  std::unique_ptr<TrainingStep> step_;
  Data batch_;
};

class RecoveryStage : public ::testing::TestWithParam<std::tuple<Stage, testing::Loop>> {};

TEST_P(RecoveryStage, LeavesTheTrainingAsItIs) {
  const auto& [stage, loop] = GetParam();
  const auto with = Training(stage, stage.dropout(), loop.options).run();
  const auto without = Training({.name = "none"}, stage.dropout(), loop.options).run();
  for (size_t i = 0; i < with.losses.size(); ++i) {
    EXPECT_NEAR(with.losses[i], without.losses[i], stage.tolerance) << "step " << i;
  }
  EXPECT_LE((with.parameters - without.parameters).abs().max().item<double>(), stage.tolerance);
}

INSTANTIATE_TEST_SUITE_P(Pairs, RecoveryStage,
                         ::testing::Combine(::testing::ValuesIn(stages()),
                                            ::testing::ValuesIn(all_loops())),
                         [](const auto& row) {
                           return std::get<0>(row.param).name + "_" + std::get<1>(row.param).name;
                         });

}  // namespace
}  // namespace torchlore
