#include "torchlore/step.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/gradient/clip_grad.hpp"

namespace torchlore {
namespace {

namespace F = torch::nn::functional;

/// A small classifier with its optimizer and data, the same every time it is made.
struct Job {
  explicit Job(bool adamw = true) {
    at::manual_seed(3);
    model = torch::nn::Sequential(torch::nn::Linear(6, 16), torch::nn::Tanh(),
                                  torch::nn::Linear(16, 3));
    if (adamw) {
      optimizer = std::make_unique<torch::optim::AdamW>(model->parameters(),
                                                        torch::optim::AdamWOptions(0.05));
    } else {
      optimizer = std::make_unique<torch::optim::SGD>(model->parameters(),
                                                      torch::optim::SGDOptions(0.1).momentum(0.9));
    }
    x = at::randn({48, 6});
    y = at::randint(3, {48}, at::kLong);
  }
  std::pair<at::Tensor, at::Tensor> batch(int64_t i) const {
    const int64_t from = (i * 8) % 48;
    return {x.slice(0, from, from + 8), y.slice(0, from, from + 8)};
  }
  at::Tensor loss(const std::pair<at::Tensor, at::Tensor>& b) {
    return F::cross_entropy(model->forward(b.first), b.second);
  }
  torch::nn::Sequential model{nullptr};
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  at::Tensor x, y;
};

::testing::AssertionResult same_parameters(const Job& a, const Job& b) {
  const auto pa = a.model->parameters(), pb = b.model->parameters();
  for (size_t i = 0; i < pa.size(); ++i) {
    if (auto equal = testing::same(pa[i], pb[i]); !equal) return equal;
  }
  return ::testing::AssertionSuccess();
}

class PlainLoopTest : public ::testing::TestWithParam<bool> {};

TEST_P(PlainLoopTest, WithoutStagesIsBitEqualToLibTorch) {
  Job ours(GetParam()), plain(GetParam());
  TrainingStep step(*ours.optimizer);
  for (int i = 0; i < 20; ++i) {
    const auto r = step([&] { return ours.loss(ours.batch(i)); });
    plain.optimizer->zero_grad();
    const auto loss = plain.loss(plain.batch(i));
    loss.backward();
    plain.optimizer->step();
    ASSERT_EQ(r.loss(), loss.item<double>());
    ASSERT_TRUE(r.stepped());
  }
  EXPECT_TRUE(same_parameters(ours, plain));
  EXPECT_EQ(step.steps(), 20);
}

TEST_P(PlainLoopTest, AccumulationIsBitEqualToLossOverN) {
  Job ours(GetParam()), plain(GetParam());
  TrainingStep step(*ours.optimizer, {.accumulate = Accumulate::batches(4)});
  for (int i = 0; i < 24; ++i) {
    const auto r = step([&] { return ours.loss(ours.batch(i)); });
    if (i % 4 == 0) plain.optimizer->zero_grad();
    (plain.loss(plain.batch(i)) / 4).backward();
    if (i % 4 == 3) plain.optimizer->step();
    ASSERT_EQ(r.stepped(), i % 4 == 3);
  }
  EXPECT_TRUE(same_parameters(ours, plain));
}

TEST_P(PlainLoopTest, ClippingFollowsLibTorch) {
  Job ours(GetParam()), plain(GetParam());
  TrainingStep step(*ours.optimizer, {.clip = clip::norm(0.3)});
  for (int i = 0; i < 20; ++i) {
    const auto r = step([&] { return ours.loss(ours.batch(i)); });
    plain.optimizer->zero_grad();
    plain.loss(plain.batch(i)).backward();
    const double norm = torch::nn::utils::clip_grad_norm_(plain.model->parameters(), 0.3);
    plain.optimizer->step();
    ASSERT_NEAR(r.grad_norm(), norm, 1e-5 * norm);
  }
  for (size_t i = 0; i < plain.model->parameters().size(); ++i) {
    EXPECT_TRUE(
        at::allclose(ours.model->parameters()[i], plain.model->parameters()[i], 1e-4, 1e-5));
  }
}

INSTANTIATE_TEST_SUITE_P(Optimizers, PlainLoopTest, ::testing::Bool());

/// The loop of the documentation, written with torchlore's objects.
void train_by_hand(Job& job, int batches, int window_size, double max_norm) {
  LossScaler scaler({.init_scale = 256.0, .growth_interval = 3});
  GradientAccumulator window(Accumulate::batches(window_size));
  for (int i = 0; i < batches; ++i) {
    if (window.empty()) job.optimizer->zero_grad();
    at::Tensor loss;
    {
      const Autocast amp(at::kCPU, at::kHalf);
      loss = job.loss(job.batch(i));
    }
    scaler.scale(window.add(loss)).backward();
    if (!window.full()) continue;
    divide_gradients_(gradients(*job.optimizer), window.divisor());
    window.reset();
    scaler.unscale_(*job.optimizer);
    clip_grad_norm_(*job.optimizer, max_norm);
    scaler.step(*job.optimizer);
    scaler.update();
  }
}

TEST(TrainingStep, IsBitEqualToTheLoopByHand) {
  for (const int window : {1, 2, 4}) {
    Job ours, by_hand;
    TrainingStep step(*ours.optimizer,
                      {.precision = Precision::fp16({.init_scale = 256.0, .growth_interval = 3}),
                       .accumulate = Accumulate::batches(window),
                       .clip = clip::norm(0.5)});
    for (int i = 0; i < 24; ++i) step([&] { return ours.loss(ours.batch(i)); });
    train_by_hand(by_hand, 24, window, 0.5);
    EXPECT_TRUE(same_parameters(ours, by_hand)) << "window " << window;
    EXPECT_GT(step.scaler()->get_scale(), 256.0);
  }
}

TEST(TrainingStep, RunsTheForwardInAutocast) {
  Job job;
  TrainingStep step(*job.optimizer, {.precision = Precision::bf16()});
  step([&] {
    EXPECT_EQ(job.model->forward(job.x).scalar_type(), at::kBFloat16);
    return job.loss(job.batch(0));
  });
  EXPECT_EQ(job.model->forward(job.x).scalar_type(), at::kFloat);
  EXPECT_EQ(step.scaler(), nullptr);
}

TEST(TrainingStep, SkipsAnOverflowAndLowersTheScale) {
  Job job;
  const auto before = job.model->parameters()[0].clone();
  TrainingStep step(*job.optimizer, {.precision = Precision::fp16()});
  const auto r = step([&] { return job.loss(job.batch(0)) * 1e38; });
  EXPECT_TRUE(r.skipped());
  EXPECT_FALSE(r.stepped());
  EXPECT_FALSE(std::isfinite(r.grad_norm()));
  EXPECT_TRUE(testing::same(job.model->parameters()[0], before));
  EXPECT_EQ(step.scaler()->get_scale(), 32768.0);
  EXPECT_EQ(step.steps(), 0);
  EXPECT_TRUE(step([&] { return job.loss(job.batch(0)); }).stepped());
}

TEST(TrainingStep, WeighsSumsAndExamplesAlike) {
  Job whole(false), sums(false), examples(false);
  TrainingStep whole_step(*whole.optimizer);
  TrainingStep sum_step(*sums.optimizer, {.accumulate = Accumulate::batches(2)});
  TrainingStep example_step(*examples.optimizer, {.accumulate = Accumulate::counts(8)});
  const auto losses = [](Job& job, int64_t from, int64_t to) {
    return F::cross_entropy(job.model->forward(job.x.slice(0, from, to)), job.y.slice(0, from, to),
                            F::CrossEntropyFuncOptions().reduction(torch::kNone));
  };
  const double mean_of_three = losses(examples, 0, 3).mean().item<double>();
  whole_step([&] { return losses(whole, 0, 8).mean(); });
  sum_step([&] { return Loss{losses(sums, 0, 3).sum(), 3}; });
  EXPECT_TRUE(sum_step([&] { return Loss{losses(sums, 3, 8).sum(), 5}; }).stepped());
  EXPECT_NEAR(example_step([&] { return losses(examples, 0, 3); }).loss(), mean_of_three, 1e-6);
  EXPECT_TRUE(example_step([&] { return losses(examples, 3, 8); }).stepped());
  for (size_t i = 0; i < 4; ++i) {
    const auto expected = whole.model->parameters()[i];
    EXPECT_TRUE(testing::close(sums.model->parameters()[i], expected));
    EXPECT_TRUE(testing::close(examples.model->parameters()[i], expected));
  }
}

TEST(TrainingStep, FinishStepsThePartialWindow) {
  Job ours, plain;
  TrainingStep step(*ours.optimizer, {.accumulate = Accumulate::batches(4)});
  for (int i = 0; i < 2; ++i) step([&] { return ours.loss(ours.batch(i)); });
  EXPECT_TRUE(step.finish().stepped());
  EXPECT_FALSE(step.finish().stepped());
  for (int i = 0; i < 2; ++i) (plain.loss(plain.batch(i)) / 2).backward();
  plain.optimizer->step();
  EXPECT_TRUE(same_parameters(ours, plain));
}

TEST(TrainingStep, KnowsAnEmptyBatch) {
  Job job;
  TrainingStep step(*job.optimizer, {.accumulate = Accumulate::batches(2)});
  const std::pair empty(job.x.slice(0, 0, 0), job.y.slice(0, 0, 0));
  const auto never = [](const auto&) -> at::Tensor { throw std::logic_error("called"); };
  const auto before = job.model->parameters()[0].clone();
  EXPECT_EQ(step(empty, never).outcome(), StepResult::Outcome::accumulated);
  const auto r = step(empty, never);
  EXPECT_EQ(r.outcome(), StepResult::Outcome::nothing);
  EXPECT_TRUE(std::isnan(r.loss()));
  EXPECT_TRUE(testing::same(job.model->parameters()[0], before));
  step(empty, never);
  EXPECT_TRUE(step(job.batch(0), [&](const auto& b) { return job.loss(b); }).stepped());
}

TEST(TrainingStep, SeveralOptimizersShareOneNorm) {
  Job split, joint;
  const auto p = split.model->parameters();
  torch::optim::SGD a(std::vector<at::Tensor>{p[0], p[1]}, 0.1),
      b(std::vector<at::Tensor>{p[2], p[3]}, 0.1);
  torch::optim::SGD both(joint.model->parameters(), 0.1);
  TrainingStep split_step({&a, &b}, {.clip = clip::norm(0.1)});
  TrainingStep joint_step(both, {.clip = clip::norm(0.1)});
  for (int i = 0; i < 5; ++i) {
    const auto ra = split_step([&] { return split.loss(split.batch(i)); });
    const auto rb = joint_step([&] { return joint.loss(joint.batch(i)); });
    EXPECT_EQ(ra.grad_norm(), rb.grad_norm());
  }
  EXPECT_TRUE(same_parameters(split, joint));
}

TEST(TrainingStep, ClipsByValueAfterDividing) {
  Job job(false);
  TrainingStep step(*job.optimizer,
                    {.accumulate = Accumulate::batches(2), .clip = clip::value(0.01)});
  for (int i = 0; i < 2; ++i) step([&] { return job.loss(job.batch(i)) * 100; });
  for (const auto& parameter : job.model->parameters()) {
    EXPECT_LE(parameter.grad().abs().max().item<float>(), 0.01f);
  }
}

TEST(TrainingStep, FollowsAThresholdSchedule) {
  Job ours, plain;
  TrainingStep step(*ours.optimizer, {.clip = clip::norm(clip::threshold::linear(0.1, 0.5, 10))});
  for (int i = 0; i < 20; ++i) {
    step([&] { return ours.loss(ours.batch(i)); });
    plain.optimizer->zero_grad();
    plain.loss(plain.batch(i)).backward();
    clip_grad_norm_(*plain.optimizer, i < 10 ? 0.1 + 0.04 * i : 0.5);
    plain.optimizer->step();
  }
  for (size_t i = 0; i < plain.model->parameters().size(); ++i) {
    EXPECT_TRUE(testing::close(ours.model->parameters()[i], plain.model->parameters()[i]));
  }
}

TEST(TrainingStep, AClipperNeverSeesAnOverflow) {
  Job job;
  TrainingStep step(*job.optimizer, {.precision = Precision::fp16(),
                                     .clip = clip::norm([](int64_t) { return 1.0; },
                                                        {.error_if_nonfinite = true})});
  EXPECT_TRUE(step([&] { return job.loss(job.batch(0)) * 1e38; }).skipped());
  EXPECT_EQ(state_int(step.clip().state_dict(), "steps"), 0);
  EXPECT_TRUE(step([&] { return job.loss(job.batch(0)); }).stepped());
  EXPECT_EQ(state_int(step.clip().state_dict(), "steps"), 1);
}

/// Clips to what it was given, and notes it.
struct NotingClipper : Clipper {
  explicit NotingClipper(std::vector<double>& to) : norms(to) {}
  double max_norm(const at::Tensor& norm) override {
    norms.push_back(norm.item<double>());
    return norms.back();
  }
  bool adaptive() const override { return true; }
  std::vector<double>& norms;
};

TEST(TrainingStep, AllRanksDecideOnTheLargestNorm) {
  Job job;
  std::vector<double> norms;
  const Reducer ranks(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::max) t.fill_(123.0);  // the other rank's
  });
  TrainingStep step(*job.optimizer, {.clip = NotingClipper(norms), .reducer = ranks});
  step([&] { return job.loss(job.batch(0)); });
  EXPECT_EQ(norms, std::vector<double>{123.0});
}

TEST(TrainingStep, AThrowDropsTheWindow) {
  Job ours, plain;
  TrainingStep step(*ours.optimizer, {.accumulate = Accumulate::batches(2)});
  step([&] { return ours.loss(ours.batch(0)); });
  // A loss without a graph: backward throws.
  EXPECT_THROW(step([&] { return at::ones({}); }), c10::Error);
  EXPECT_TRUE(step.window().empty());
  for (int i = 1; i < 3; ++i) step([&] { return ours.loss(ours.batch(i)); });
  for (int i = 1; i < 3; ++i) (plain.loss(plain.batch(i)) / 2).backward();
  plain.optimizer->step();
  EXPECT_TRUE(same_parameters(ours, plain));
}

/// Counts how it is asked to step.
struct CountingSgd : torch::optim::SGD, ScaledStep {
  using SGD::SGD;
  void step_scaled(const at::Tensor& divisor) override {
    ++scaled;
    last_divisor = divisor.item().toDouble();
  }
  int scaled = 0;
  double last_divisor = 0;
};

TEST(TrainingStep, GoesOnWithTheWindowWhenTheLossFunctionThrows) {
  Job ours, plain;
  TrainingStep step(*ours.optimizer, {.accumulate = Accumulate::batches(2)});
  step([&] { return ours.loss(ours.batch(0)); });
  EXPECT_THROW(step([]() -> at::Tensor { throw std::runtime_error("bad batch"); }),
               std::runtime_error);
  EXPECT_TRUE(step([&] { return ours.loss(ours.batch(1)); }).stepped());
  for (int i = 0; i < 2; ++i) (plain.loss(plain.batch(i)) / 2).backward();
  plain.optimizer->step();
  EXPECT_TRUE(same_parameters(ours, plain));
}

TEST(TrainingStep, AllRanksSkipWhenOneFindsInf) {
  Job job;
  const Reducer ranks(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::max) t.fill_(1);  // the other rank found one
  });
  TrainingStep step(*job.optimizer, {.precision = Precision::fp16(), .reducer = ranks});
  EXPECT_TRUE(step([&] { return job.loss(job.batch(0)); }).skipped());
  EXPECT_EQ(step.scaler()->get_scale(), 32768.0);
}

TEST(TrainingStep, HandsTheDivisorToAnOptimizerThatTakesIt) {
  Job job;
  CountingSgd optimizer(job.model->parameters(), torch::optim::SGDOptions(0.1));
  TrainingStep step(optimizer, {.accumulate = Accumulate::batches(3)});
  for (int i = 0; i < 3; ++i) step([&] { return job.loss(job.batch(i)); });
  EXPECT_EQ(optimizer.scaled, 1);
  EXPECT_EQ(optimizer.last_divisor, 0.75);  // 3 micro-batches over the power of two that holds them
}

TEST(TrainingStep, SavesAndLoads) {
  Job job;
  const auto schedule = clip::norm(clip::threshold::linear(0.1, 0.5, 10));
  TrainingStep saved(*job.optimizer,
                     {.precision = Precision::fp16({.init_scale = 64.0}), .clip = schedule});
  saved([&] { return job.loss(job.batch(0)); });
  TrainingStep loaded(*job.optimizer, {.precision = Precision::fp16(), .clip = schedule});
  loaded.load_state_dict(saved.state_dict());
  EXPECT_EQ(loaded.steps(), 1);
  EXPECT_EQ(loaded.scaler()->get_scale(), 64.0);
  EXPECT_EQ(state_int(loaded.clip().state_dict(), "steps"), 1);
}

TEST(TrainingStep, NamesMisuse) {
  Job job;
  EXPECT_EQ(testing::message_of<c10::ValueError>(
                [] { TrainingStep(std::vector<torch::optim::Optimizer*>{}); }),
            "a TrainingStep needs at least one optimizer, but got none");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] {
              TrainingStep(
                  std::vector<torch::optim::Optimizer*>{job.optimizer.get(), job.optimizer.get()});
            }),
            "optimizer 1 of a TrainingStep is given twice; it would step twice");
  torch::optim::SGD empty(std::vector<at::Tensor>{}, 0.1);
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { TrainingStep step(empty); }),
            "optimizer 0 of a TrainingStep has no parameters");
  torch::optim::LBFGS lbfgs(job.model->parameters());
  EXPECT_EQ(
      testing::message_of<c10::NotImplementedError>([&] { TrainingStep step(lbfgs); }),
      "a TrainingStep cannot drive LBFGS, which runs its closure, and with it backward, several "
      "times in one step; call its step(closure)");
  TrainingStep step(*job.optimizer);
  EXPECT_EQ(
      testing::message_of<c10::ValueError>(
          [&] { step([&] { return job.model->forward(job.x); }); }),
      "a loss function must return a 0-d mean, a Loss{sum, count} or one loss per example [B], "
      "but returned shape [48, 3]");
  auto elsewhere = at::ones({}).requires_grad_();
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([&] { step([&] { return elsewhere * 2; }); }),
      "backward reached no parameter of the optimizer: none has a gradient; check that the loss "
      "is computed from the model the optimizer was made for, and not detached");
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([] { clip::norm(0); }),
      "clip::norm(max_norm) must be above 0, but is 0; use infinity to measure without clipping");
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { clip::value(-1); }),
            "clip::value(clip_value) must be a finite number above 0, but is -1");
}

}  // namespace
}  // namespace torchlore
