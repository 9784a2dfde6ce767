// What TrainingStep's schedule must leave equal, beside every other stage: a loop that writes the same
// rates itself before each step, bit for bit.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "composition/loops.hpp"
#include "support/tolerance.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"

namespace torchlore {
namespace {

constexpr int kBatches = 24;
constexpr double kLearningRate = 0.02;

Schedule schedule_of_test() { return schedule::warmup(3).then(schedule::cosine(15, 0.1)); }

template <typename Optimizer>
at::Tensor train(TrainingStepOptions options, bool by_hand) {
  at::set_num_threads(1);  // the nets are tiny
  at::manual_seed(11);
  torch::nn::Sequential net(torch::nn::Linear(8, 24), torch::nn::GELU(), torch::nn::Linear(24, 4));
  const auto x = at::randn({16, 8});
  const auto y = at::randint(4, {16}, at::kLong);
  Optimizer optimizer(net->parameters(), torch::optim::AdamWOptions(kLearningRate));
  if (!by_hand) options.schedule = schedule_of_test();
  TrainingStep step(optimizer, options);
  for (int i = 0; i < kBatches; ++i) {
    if (by_hand) {
      optimizer.param_groups()[0].options().set_lr(kLearningRate *
                                                   schedule_of_test()(step.steps()));
    }
    // With a loss scaler some steps overflow, and must not move the schedule.
    const bool overflow = options.precision.scaler() && (i == 5 || i == 12);
    step([&] {
      const auto loss = torch::nn::functional::cross_entropy(net->forward(x), y);
      return overflow ? loss * 1e38 : loss;
    });
  }
  std::vector<at::Tensor> flat;
  for (const auto& p : net->parameters()) flat.push_back(p.detach().reshape(-1));
  return at::cat(flat);
}

struct Stage {
  std::string name;
  Activations activations;
};

std::vector<Stage> stages() {
  return {{"keep", Activations::keep()},
          {"budget", Activations::budget(Bytes(0))},
          {"compress", Activations::compress(at::kBFloat16, {.min_bytes = 0})}};
}

class ScheduleStage : public ::testing::TestWithParam<std::tuple<Stage, testing::Loop>> {};

TEST_P(ScheduleStage, EqualsRatesWrittenByHand) {
  const auto& [stage, loop] = GetParam();
  auto options = loop.options;
  options.activations = stage.activations;
  using Plain = torch::optim::AdamW;
  EXPECT_TRUE(testing::same(train<Plain>(options, false), train<Plain>(options, true)));
  EXPECT_TRUE(testing::same(train<FusedAdamW>(options, false), train<FusedAdamW>(options, true)));
}

INSTANTIATE_TEST_SUITE_P(Pairs, ScheduleStage,
                         ::testing::Combine(::testing::ValuesIn(stages()),
                                            ::testing::ValuesIn(testing::loops())),
                         [](const auto& row) {
                           return std::get<0>(row.param).name + "_" + std::get<1>(row.param).name;
                         });

}  // namespace
}  // namespace torchlore
