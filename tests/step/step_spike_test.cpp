// The spike guard inside a TrainingStep.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// A linear regression: gradients are what the inputs make them.
struct Job {
  Job() {
    at::set_num_threads(1);  // the net is tiny
    at::manual_seed(3);
    model = torch::nn::Linear(4, 1);
    optimizer = std::make_unique<torch::optim::SGD>(model->parameters(),
                                                    torch::optim::SGDOptions(0.01).momentum(0.9));
    truth = at::randn({4, 1});
  }
  /// The loss of a batch whose targets are off by `error`.
  at::Tensor loss(double error = 0) {
    const auto x = at::randn({16, 4});
    const auto noise = at::randn({16, 1}) * 0.5;
    return at::mse_loss(model->forward(x), x.mm(truth) + noise + error);
  }
  at::Tensor parameters() const {
    return at::cat({model->weight.detach().reshape(-1), model->bias.detach()});
  }
  torch::nn::Linear model{nullptr};
  std::unique_ptr<torch::optim::SGD> optimizer;
  at::Tensor truth;
};

SpikeGuardOptions quick() { return {.window = 16, .warmup = 4, .snapshot_every = 4}; }

TEST(SpikeStep, ClipsThenSkipsThenRollsBack) {
  Job job;
  TrainingStep step(*job.optimizer, {.spike = quick()});
  std::vector<double> norms;
  for (int i = 0; i < 30; ++i) norms.push_back(step([&] { return job.loss(); }).grad_norm());
  const auto before = job.parameters();
  const auto clipped = step([&] { return job.loss(5); });
  EXPECT_TRUE(clipped.stepped());
  EXPECT_EQ(step.spike_guard()->last_spike().action, SpikeAction::clip);
  double square = 0;
  for (const auto& p : job.model->parameters()) square += p.grad().square().sum().item<double>();
  EXPECT_NEAR(std::sqrt(square), step.spike_guard()->last_spike().max_norm, 1e-4);
  EXPECT_LT(std::sqrt(square), clipped.grad_norm() / 4);
  EXPECT_FALSE(at::equal(job.parameters(), before));
  const auto after = job.parameters();
  EXPECT_EQ(step([&] { return job.loss(5); }).outcome(), StepResult::Outcome::skipped);
  EXPECT_TRUE(at::equal(job.parameters(), after));
  const auto back = step([&] { return job.loss(5); });
  EXPECT_TRUE(back.rolled_back());
  EXPECT_TRUE(back.skipped());
  EXPECT_FALSE(at::equal(job.parameters(), after));
  EXPECT_EQ(step.steps(), 31);
  EXPECT_EQ(job.optimizer->param_groups()[0].options().get_lr(), 0.005);
}

TEST(SpikeStep, TheStricterOfGuardAndClipperHolds) {
  Job job;
  TrainingStep step(*job.optimizer, {.clip = clip::norm(1e-3), .spike = quick()});
  for (int i = 0; i < 30; ++i) step([&] { return job.loss(); });
  EXPECT_TRUE(step([&] { return job.loss(5); }).stepped());
  EXPECT_GT(step.spike_guard()->last_spike().max_norm, 1e-3);
  EXPECT_LE(job.model->weight.grad().norm().item<double>(), 1.001e-3);
}

TEST(SpikeStep, AClipperDoesNotRememberWhatIsRefused) {
  Job job;
  TrainingStep step(*job.optimizer,
                    {.clip = clip::norm([](int64_t) { return 1.0; }), .spike = quick()});
  step([&] { return job.loss(); });
  EXPECT_TRUE(step([&] { return job.loss(kInf); }).skipped());
  EXPECT_EQ(state_int(step.clip().state_dict(), "steps"), 1);
}

TEST(SpikeStep, LowersTheRatesOfASchedule) {
  Job job;
  auto options = quick();
  options.cooldown = 3;
  TrainingStep step(*job.optimizer, {.schedule = schedule::constant(), .spike = options});
  const auto rate = [&] { return job.optimizer->param_groups()[0].options().get_lr(); };
  step([&] { return job.loss(); });
  for (int i = 0; i < 2; ++i) step([&] { return job.loss(kInf); });
  EXPECT_EQ(step.spike_guard()->roll_backs(), 1);
  EXPECT_EQ(rate(), 0.005);
  for (int i = 0; i < 2; ++i) step([&] { return job.loss(); });
  EXPECT_EQ(rate(), 0.005);
  step([&] { return job.loss(); });
  EXPECT_EQ(rate(), 0.01);
}

TEST(SpikeStep, DropsAMicroBatchAndStepsWithTheRest) {
  Job ours, plain;
  auto options = quick();
  options.drop_bad_batches = true;
  TrainingStep step(*ours.optimizer, {.accumulate = Accumulate::batches(4), .spike = options});
  TrainingStep rest(*plain.optimizer, {.accumulate = Accumulate::batches(3)});
  at::manual_seed(1);
  for (const double error : {0.0, static_cast<double>(kInf), 0.0, 0.0}) {
    const auto r = step([&] { return ours.loss(error); });
    EXPECT_EQ(std::isfinite(r.loss()), error == 0);
  }
  at::manual_seed(1);
  rest([&] { return plain.loss(); });
  plain.loss();  // the one that was dropped
  for (int i = 0; i < 2; ++i) rest([&] { return plain.loss(); });
  EXPECT_TRUE(testing::close(ours.parameters(), plain.parameters()));
  EXPECT_EQ(step.steps(), 1);
  EXPECT_EQ(step.spike_guard()->dropped(), 1);
  EXPECT_EQ(step.spike_guard()->spikes(), 0);
}

TEST(SpikeStep, AWindowOfDroppedBatchesCountsAsASpike) {
  Job job;
  auto options = quick();
  options.drop_bad_batches = true;
  TrainingStep step(*job.optimizer, {.spike = options});
  step([&] { return job.loss(); });
  const auto start = job.parameters();
  step([&] { return job.loss(); });
  EXPECT_EQ(step([&] { return job.loss(kInf); }).outcome(), StepResult::Outcome::skipped);
  EXPECT_EQ(step([&] {
              return Loss{job.loss(kInf) * 16, 16};
            }).outcome(),
            StepResult::Outcome::rolled_back);
  // Whose loss was the first that was seen.
  Job fresh;
  EXPECT_TRUE(at::equal(job.parameters(), fresh.parameters()));
  EXPECT_EQ(step([&] { return Loss{job.loss() * 0, 0}; }).outcome(), StepResult::Outcome::nothing);
  EXPECT_EQ(step.spike_guard()->spikes(), 2);
}

TEST(SpikeStep, ParametersThatAScalerSkipsForeverAreRolledBack) {
  Job job;
  TrainingStep step(*job.optimizer,
                    {.precision = Precision::fp16({.init_scale = 8}), .spike = quick()});
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(step([&] { return job.loss(); }).stepped());
  {
    const at::NoGradGuard no_grad;
    job.model->weight.fill_(std::nanf(""));
  }
  EXPECT_EQ(step([&] { return job.loss(); }).outcome(), StepResult::Outcome::skipped);
  EXPECT_EQ(step([&] { return job.loss(); }).outcome(), StepResult::Outcome::rolled_back);
  EXPECT_TRUE(job.parameters().isfinite().all().item<bool>());
  EXPECT_EQ(step.scaler()->get_scale(), 2.0);  // its own business
  EXPECT_TRUE(step([&] { return job.loss(); }).stepped());
}

TEST(SpikeStep, AnOverflowOfGradientsAloneIsTheScalersBusiness) {
  Job job;
  TrainingStep step(*job.optimizer,
                    {.precision = Precision::fp16({.init_scale = 1e30}), .spike = quick()});
  for (int i = 0; i < 5; ++i) {
    // A finite loss, whose gradients overflow.
    EXPECT_TRUE(step([&] { return job.loss() * 1e12; }).skipped());
  }
  EXPECT_EQ(step.spike_guard()->spikes(), 0);
}

TEST(SpikeStep, ABackwardThatThrowsLeavesNoLossBehind) {
  Job job;
  TrainingStep step(*job.optimizer, {.accumulate = Accumulate::batches(2), .spike = quick()});
  step([&] { return job.loss(1'000); });
  EXPECT_THROW(step([&] { return at::ones({}); }), c10::Error);
  for (int i = 0; i < 2; ++i) step([&] { return job.loss(); });
  step.finish();
  const auto level = step.spike_guard()->state_dict().at("losses")[0].item<double>();
  EXPECT_LT(level, std::log(20.0));
}

TEST(SpikeStep, AStepThatThrowsLeavesNoLossBehindWithRetryEither) {
  Job job;
  TrainingStep step(*job.optimizer, {.spike = quick(), .retry = RetryOptions{}});
  const auto stranger = at::full({}, 1e6).requires_grad_();
  EXPECT_THROW(step([&] { return stranger * 1; }), c10::ValueError) << "reaches no parameter";
  step([&] { return job.loss(); });
  const auto level = step.spike_guard()->state_dict().at("losses")[0].item<double>();
  EXPECT_LT(level, std::log(20.0));
}

TEST(SpikeStep, ADroppedBatchCountsOnceWithRetryToo) {
  Job plain_job, retried_job;
  auto options = quick();
  options.drop_bad_batches = true;
  const auto window = Accumulate::batches(2);
  TrainingStep plain(*plain_job.optimizer, {.accumulate = window, .spike = options});
  TrainingStep retried(*retried_job.optimizer,
                       {.accumulate = window, .spike = options, .retry = RetryOptions{}});
  const auto train = [](TrainingStep& step, Job& job) {
    at::manual_seed(1);
    for (const double error : {0.0, 0.0, 0.0, 1e6, 0.0, 0.0}) {
      step([&] { return job.loss(error); });
    }
  };
  train(plain, plain_job);
  train(retried, retried_job);
  EXPECT_EQ(retried.spike_guard()->dropped(), 1);
  const auto expected = plain.spike_guard()->state_dict();
  for (const auto& [key, value] : retried.spike_guard()->state_dict()) {
    EXPECT_TRUE(at::equal(value.nan_to_num(), expected.at(key).nan_to_num())) << key;
  }
}

TEST(SpikeStep, SavesAndLoadsTheGuard) {
  Job job;
  TrainingStep saved(*job.optimizer, {.spike = quick()});
  for (int i = 0; i < 9; ++i) saved([&] { return job.loss(); });
  saved([&] { return job.loss(kInf); });
  TrainingStep loaded(*job.optimizer, {.spike = quick()});
  loaded.load_state_dict(saved.state_dict());
  EXPECT_EQ(loaded.spike_guard()->spikes(), 1);
  auto broken = saved.state_dict();
  broken.erase("spike/losses");
  broken["steps"] = state_value(int64_t{77});
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { loaded.load_state_dict(broken); }),
            "the saved state of a SpikeGuard has no 'losses'");
  EXPECT_EQ(loaded.steps(), 9);
  TrainingStep without(*job.optimizer);
  EXPECT_EQ(without.spike_guard(), nullptr);
}

TEST(SpikeStep, AllRanksRefuseTogether) {
  Job job;
  const Reducer ranks(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::sum && t.numel() == 2) t[0].fill_(kInf);  // the other rank's loss
  });
  TrainingStep step(*job.optimizer, {.spike = quick(), .reducer = ranks});
  EXPECT_EQ(step([&] { return job.loss(); }).outcome(), StepResult::Outcome::skipped);
  EXPECT_EQ(step.spike_guard()->last_spike().reason, SpikeReason::non_finite);
}

}  // namespace
}  // namespace torchlore
