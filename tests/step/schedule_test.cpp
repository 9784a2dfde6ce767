// The schedule as a stage of TrainingStep.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <utility>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

/// A regression on fixed data; the loss of batch `i`, made infinite for float16 on demand.
struct Job {
  Job() {
    at::manual_seed(3);
    model = torch::nn::Linear(6, 3);
    x = at::randn({48, 6});
  }
  at::Tensor loss(int64_t i, bool overflow = false) {
    const auto batch = x.slice(0, (i * 8) % 48, (i * 8) % 48 + 8);
    const auto mean = (model(batch) - batch.slice(1, 0, 3)).square().mean();
    return overflow ? mean * 1e38 : mean;
  }
  torch::nn::Linear model{nullptr};
  at::Tensor x;
};

::testing::AssertionResult same_parameters(const Job& a, const Job& b) {
  if (auto weight = testing::same(a.model->weight, b.model->weight); !weight) return weight;
  return testing::same(a.model->bias, b.model->bias);
}

Schedule short_schedule() { return schedule::warmup(4).then(schedule::cosine(12, 0.1)); }

bool overflows(int64_t i) { return i == 6 || i == 7 || i == 20; }

TEST(ScheduleStage, IsBitEqualToTheLoopByHand) {
  Job ours, by_hand;
  torch::optim::AdamW our_optimizer(ours.model->parameters(), torch::optim::AdamWOptions(0.05));
  torch::optim::AdamW optimizer(by_hand.model->parameters(), torch::optim::AdamWOptions(0.05));
  const LossScalerOptions scaling{.init_scale = 256.0};
  TrainingStep step(our_optimizer, {.precision = Precision::fp16(scaling),
                                    .accumulate = Accumulate::batches(2),
                                    .clip = clip::norm(0.5),
                                    .schedule = short_schedule()});
  LossScaler scaler(scaling);
  GradientAccumulator window(Accumulate::batches(2));
  LearningRate rate(optimizer, short_schedule());
  for (int64_t i = 0; i < 40; ++i) {
    step([&] { return ours.loss(i, overflows(i)); });
    if (window.empty()) optimizer.zero_grad();
    at::Tensor loss;
    {
      const Autocast amp(at::kCPU, at::kHalf);
      loss = by_hand.loss(i, overflows(i));
    }
    scaler.scale(window.add(loss)).backward();
    if (!window.full()) continue;
    const auto divisor = window.divisor();
    window.reset();
    divide_gradients_(gradients(optimizer), divisor);
    scaler.unscale_and_clip_(optimizer, 0.5);
    if (scaler.step(optimizer)) rate.step();
    scaler.update();
    ASSERT_EQ(step.learning_rate()->rate(), rate.rate());
  }
  EXPECT_TRUE(same_parameters(ours, by_hand));
  EXPECT_EQ(step.steps(), 18);  // of 20 windows
  EXPECT_EQ(rate.steps(), 18);
}

TEST(ScheduleStage, OnlyRealStepsMoveIt) {
  Job job;
  torch::optim::SGD optimizer(job.model->parameters(), 0.1);
  TrainingStep step(optimizer, {.precision = Precision::fp16(),
                                .accumulate = Accumulate::batches(2),
                                .schedule = short_schedule()});
  const auto rate = [&] { return optimizer.param_groups()[0].options().get_lr(); };
  EXPECT_EQ(rate(), 0.1 * short_schedule()(0));
  step([&] { return job.loss(0); });
  EXPECT_EQ(rate(), 0.1 * short_schedule()(0));  // inside a window
  EXPECT_TRUE(step([&] { return job.loss(1, true); }).skipped());
  EXPECT_EQ(rate(), 0.1 * short_schedule()(0));
  step([&] { return job.loss(2); });
  EXPECT_TRUE(step([&] { return job.loss(3); }).stepped());
  EXPECT_EQ(rate(), 0.1 * short_schedule()(1));
  step([&] { return job.loss(4); });
  EXPECT_TRUE(step.finish().stepped());
  EXPECT_EQ(rate(), 0.1 * short_schedule()(2));
}

/// Two optimizers over one model, each with its rate.
struct Pair {
  Job job;
  torch::optim::SGD a{std::vector<at::Tensor>{job.model->weight}, 0.1};
  torch::optim::AdamW b{std::vector<at::Tensor>{job.model->bias}, torch::optim::AdamWOptions(0.02)};
};

TEST(ScheduleStage, SeveralOptimizersKeepTheirBaseRates) {
  Pair pair;
  TrainingStep step({&pair.a, &pair.b}, {.schedule = short_schedule()});
  step.learning_rate(1)->set_schedule(0, schedule::cosine(5));
  for (int64_t i = 0; i < 4; ++i) step([&] { return pair.job.loss(i); });
  EXPECT_EQ(pair.a.param_groups()[0].options().get_lr(), 0.1 * short_schedule()(4));
  EXPECT_EQ(pair.b.param_groups()[0].options().get_lr(), 0.02 * schedule::cosine(5)(4));
}

TEST(ScheduleStage, SavesAndLoads) {
  Pair saved, loaded;
  TrainingStep before({&saved.a, &saved.b}, {.schedule = short_schedule()});
  for (int64_t i = 0; i < 3; ++i) before([&] { return saved.job.loss(i); });
  before.learning_rate(1)->scale(0.5);
  const auto state = before.state_dict();
  EXPECT_EQ(state.at("schedule/0/steps").item<int64_t>(), 3);
  EXPECT_EQ(state.at("schedule/1/base_rates").item<double>(), 0.01);
  TrainingStep after({&loaded.a, &loaded.b}, {.schedule = short_schedule()});
  after.load_state_dict(state);
  EXPECT_EQ(after.learning_rate(0)->rate(), 0.1 * short_schedule()(3));
  EXPECT_EQ(after.learning_rate(1)->rate(), 0.01 * short_schedule()(3));
  auto broken = state;
  broken.erase("schedule/1/base_rates");
  broken["steps"] = state_value(int64_t{17});
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { after.load_state_dict(broken); }),
            "the saved state has no 'base_rates'; is it one of a LearningRate?");
  EXPECT_EQ(after.steps(), 3);
  const auto without = TrainingStep({&saved.a, &saved.b}).state_dict();
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { after.load_state_dict(without); }),
            "the saved state of the TrainingStep has no 'schedule/0/': it was saved without that "
            "stage; load it into a step with the stages it was saved from");
}

TEST(ScheduleStage, SchedulesTheFirstStepOfANewGroup) {
  Job job;
  torch::optim::SGD optimizer(std::vector<at::Tensor>{job.model->weight}, 0.1);
  TrainingStep step(optimizer, {.schedule = schedule::constant(100, 0.5)});
  step([&] { return job.loss(0); });
  optimizer.add_param_group({{job.model->bias}, std::make_unique<torch::optim::SGDOptions>(0.3)});
  const auto bias = job.model->bias.detach().clone();
  step([&] { return job.loss(1); });
  EXPECT_TRUE(testing::close(job.model->bias.detach(), bias - 0.15 * job.model->bias.grad()));
}

TEST(ScheduleStage, NamesMisuse) {
  Job job;
  torch::optim::SGD sgd(std::vector<at::Tensor>{job.model->weight}, 0.1);
  torch::optim::Adagrad adagrad(std::vector<at::Tensor>{job.model->bias}, 0.1);
  const auto constant = [](double value) { return [=](int64_t) { return value; }; };
  const Schedule with_momentum({.factor = constant(0.5), .momentum = constant(0.9)});
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([&] {
        TrainingStep({&sgd, &adagrad}, {.schedule = with_momentum});
      }),
      "the schedule of group 0 writes momentum, but the group's optimizer has neither momentum "
      "nor betas; make the schedule without, for one_cycle by .cycle_momentum = false");
  EXPECT_EQ(sgd.param_groups()[0].options().get_lr(), 0.1);
  TrainingStep step(sgd);
  EXPECT_EQ(step.learning_rate(), nullptr);
  EXPECT_EQ(testing::message_of<c10::IndexError>([&] { step.learning_rate(1); }),
            "there is no optimizer 1 in this TrainingStep; it has 1");
}

}  // namespace
}  // namespace torchlore
