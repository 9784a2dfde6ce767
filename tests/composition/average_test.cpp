// What TrainingStep's weight average must leave equal, beside every other stage: the training itself, bit
// for bit, and the averages, which are those of a loop that makes them itself.
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

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "composition/loops.hpp"
#include "support/fails_in_backward.hpp"
#include "support/fake_clock.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"

namespace torchlore {
namespace {

constexpr int kBatches = 24;

struct Outcome {
  StateDict model;
  StateDict averages;
};

/// Evaluates with the averages in the model at times, which must not disturb the training.
template <typename Optimizer>
Outcome train(TrainingStepOptions options, bool by_hand) {
  at::set_num_threads(1);  // the nets are tiny
  at::manual_seed(11);
  torch::nn::Sequential net(torch::nn::Linear(8, 24), torch::nn::BatchNorm1d(24), torch::nn::GELU(),
                            torch::nn::Linear(24, 4));
  const auto x = at::randn({16, 8});
  const auto y = at::randint(4, {16}, at::kLong);
  Optimizer optimizer(net->parameters(), torch::optim::AdamWOptions(0.02));
  // Beside a spike guard an average waits for the next loss, and batch norm moves on meanwhile.
  const auto buffers = options.spike ? AverageBuffers::leave : AverageBuffers::average;
  auto average = WeightAverage::ema(*net, {.start = 2, .buffers = buffers});
  if (!by_hand) options.average = average;
  testing::FakeClock time;
  if (options.retry) options.retry = RetryOptions{.model = &*net, .clock = time.clock()};
  TrainingStep step(optimizer, options);
  for (int i = 0; i < kBatches; ++i) {
    const bool overflow = options.precision.scaler() && (i == 5 || i == 12);
    bool fails = options.retry && i % 3 == 1;  // once, after the graph was made
    const auto r = step([&] {
      const auto loss = torch::nn::functional::cross_entropy(net->forward(x), y);
      if (std::exchange(fails, false)) return testing::FailsInBackward::apply(loss);
      return overflow ? loss * 1e38 : loss;
    });
    if (by_hand && r.stepped()) average.update();
    if (!by_hand && i % 7 == 0) {
      const auto scope = average.swap();
      net->eval();
      net->forward(x);
      net->train();
    }
  }
  step.finish();
  return {module_state_dict(*net), average.averages()};
}

template <typename Optimizer>
void compare(const TrainingStepOptions& options) {
  const auto ours = train<Optimizer>(options, false);
  const auto expected = train<Optimizer>(options, true);
  for (const auto& [name, tensor] : expected.model) {
    EXPECT_TRUE(testing::same(ours.model.at(name), tensor)) << name;
  }
  for (const auto& [name, tensor] : expected.averages) {
    EXPECT_TRUE(testing::same(ours.averages.at(name), tensor)) << name;
  }
}

struct Stage {
  std::string name;
  void (*add)(TrainingStepOptions& options);
};

std::vector<Stage> stages() {
  using Options = TrainingStepOptions;
  return {
      {"nothing", [](Options&) {}},
      {"budget", [](Options& o) { o.activations = Activations::budget(Bytes(0)); }},
      {"compress",
       [](Options& o) { o.activations = Activations::compress(at::kBFloat16, {.min_bytes = 0}); }},
      {"schedule",
       [](Options& o) { o.schedule = schedule::warmup(3).then(schedule::cosine(15, 0.1)); }},
      {"autoclip", [](Options& o) { o.clip = clip::autoclip(20); }},
      {"spike_guard", [](Options& o) { o.spike = SpikeGuardOptions{.snapshot_every = 3}; }},
      {"retry", [](Options& o) { o.retry = RetryOptions{}; }},
  };
}

class AverageStage : public ::testing::TestWithParam<std::tuple<Stage, testing::Loop>> {};

TEST_P(AverageStage, LeavesTheTrainingAsItIs) {
  const auto& [stage, loop] = GetParam();
  auto options = loop.options;
  stage.add(options);
  compare<torch::optim::AdamW>(options);
  compare<FusedAdamW>(options);
}

INSTANTIATE_TEST_SUITE_P(Pairs, AverageStage,
                         ::testing::Combine(::testing::ValuesIn(stages()),
                                            ::testing::ValuesIn(testing::loops())),
                         [](const auto& row) {
                           return std::get<0>(row.param).name + "_" + std::get<1>(row.param).name;
                         });

}  // namespace
}  // namespace torchlore
