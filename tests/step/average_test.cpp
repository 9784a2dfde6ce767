// The weight average as a stage of TrainingStep.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

/// A regression on fixed data; the loss of batch `i`, made infinite for float16 on demand.
struct Job {
  Job() { at::manual_seed(3); }
  at::Tensor loss(int64_t i, bool overflow = false) {
    const auto batch = x.slice(0, (i * 8) % 48, (i * 8) % 48 + 8);
    const auto mean = (model(batch) - batch.slice(1, 0, 3)).square().mean();
    return overflow ? mean * 1e38 : mean;
  }
  torch::nn::Linear model = (at::manual_seed(3), torch::nn::Linear(6, 3));
  at::Tensor x = at::randn({48, 6});
  torch::optim::SGD optimizer{model->parameters(), 0.1};
};

TEST(AverageStage, IsUpdatedByRealStepsOnly) {
  Job ours, by_hand;
  auto average = WeightAverage::ema(*ours.model);
  auto expected = WeightAverage::ema(*by_hand.model);
  const auto fp16 = Precision::fp16({.init_scale = 1024.0});
  TrainingStep step(ours.optimizer,
                    {.precision = fp16, .accumulate = Accumulate::batches(2), .average = average});
  TrainingStep plain(by_hand.optimizer, {.precision = fp16, .accumulate = Accumulate::batches(2)});
  for (int64_t i = 0; i < 20; ++i) {
    step([&] { return ours.loss(i, i == 5 || i == 8); });
    if (plain([&] { return by_hand.loss(i, i == 5 || i == 8); }).stepped()) expected.update();
  }
  EXPECT_EQ(average.steps(), 8);  // of 10 windows
  EXPECT_TRUE(testing::same(ours.model->weight, by_hand.model->weight));
  for (const auto& [name, tensor] : average.averages()) {
    EXPECT_TRUE(testing::same(tensor, expected.averages().at(name))) << name;
  }
}

TEST(AverageStage, SavesAndLoads) {
  Job saved, loaded;
  TrainingStep before(saved.optimizer, {.average = WeightAverage::swa(*saved.model)});
  for (int64_t i = 0; i < 3; ++i) before([&] { return saved.loss(i); });
  const auto state = before.state_dict();
  EXPECT_EQ(state.at("average/updates").item<int64_t>(), 3);
  auto average = WeightAverage::swa(*loaded.model);
  TrainingStep after(loaded.optimizer, {.average = average});
  after.load_state_dict(state);
  EXPECT_EQ(average.updates(), 3);
  EXPECT_TRUE(
      testing::same(average.averages().at("weight"), state.at("average/parameters/weight")));
  auto broken = state;
  broken.erase("average/updates");
  broken["steps"] = state_value(int64_t{17});
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([&] { after.load_state_dict(broken); }),
      "the saved state does not fit the WeightAverage, and nothing was changed; 1 difference:\n"
      "  updates: missing in the saved state");
  EXPECT_EQ(after.steps(), 3);
}

TEST(AverageStage, BesideASpikeGuardWaitsUntilWeightsAreKnownToBeGood) {
  Job job, clean;
  auto average = WeightAverage::swa(*job.model);
  auto expected = WeightAverage::swa(*clean.model);
  TrainingStep step(job.optimizer,
                    {.average = average,
                     .spike = SpikeGuardOptions{
                         .clips = 0, .skips = 0, .snapshot_every = 1, .rate_factor = 1.0}});
  TrainingStep plain(clean.optimizer);
  const auto train = [&](int64_t i) { return step([&] { return job.loss(i); }).outcome(); };
  for (int64_t i = 0; i < 10; ++i) {
    EXPECT_EQ(train(i), StepResult::Outcome::stepped);
    EXPECT_EQ(average.steps(), i);  // one behind
    plain([&] { return clean.loss(i); });
    expected.update();
  }
  // A rate gone mad: the step itself looks well, its weights are found out by the next loss.
  job.optimizer.param_groups()[0].options().set_lr(1e7);
  EXPECT_EQ(train(10), StepResult::Outcome::stepped);
  EXPECT_GT(job.model->weight.abs().max().item<double>(), 1e3);
  EXPECT_EQ(train(11), StepResult::Outcome::rolled_back);
  job.optimizer.param_groups()[0].options().set_lr(0.1);
  step.finish();
  EXPECT_EQ(average.steps(), 10);
  for (const auto& [name, tensor] : average.averages()) {
    EXPECT_TRUE(testing::same(tensor, expected.averages().at(name))) << name;
  }
  // What waits is saved with the step.
  EXPECT_EQ(train(12), StepResult::Outcome::stepped);
  Job resumed;
  auto again = WeightAverage::swa(*resumed.model);
  TrainingStep after(resumed.optimizer, {.average = again, .spike = SpikeGuardOptions{}});
  after.load_state_dict(step.state_dict());
  EXPECT_EQ(again.steps(), 10);
  after.finish();
  EXPECT_EQ(again.steps(), 11);
  after.finish();
  EXPECT_EQ(again.steps(), 11);
}

TEST(AverageStage, DoesNotTrainAverages) {
  Job job;
  auto average = WeightAverage::swa(*job.model);
  TrainingStep step(job.optimizer, {.average = average});
  step([&] { return job.loss(0); });
  {
    const auto scope = average.swap();
    EXPECT_EQ(testing::message_of<c10::Error>([&] { step([&] { return job.loss(1); }); }),
              "a TrainingStep cannot train while averaged weights are in the model; end the scope "
              "that WeightAverage::swap() gave first");
  }
  EXPECT_TRUE(step([&] { return job.loss(1); }).stepped());
}

}  // namespace
}  // namespace torchlore
