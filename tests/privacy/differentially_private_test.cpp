#include "torchlore/privacy/differentially_private.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "support/message.hpp"
#include "support/thread_ranks.hpp"
#include "support/tolerance.hpp"
#include "support/warnings.hpp"
#include "torchlore/data/fixed_size_sampler.hpp"
#include "torchlore/data/poisson_sampler.hpp"
#include "torchlore/privacy/pld.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

using testing::CollectWarnings;
using testing::message_of;
using Data = std::tuple<at::Tensor, at::Tensor>;

constexpr int64_t kExamples = 12;

/// A model, its data and a private step, all of float64.
struct Training {
  explicit Training(const DifferentiallyPrivateOptions& options, TrainingStepOptions stages = {})
      : dp([&] {
          at::manual_seed(3);
          net = torch::nn::Sequential(torch::nn::Linear(5, 7), torch::nn::Tanh(),
                                      torch::nn::Linear(7, 3));
          net->to(at::kDouble);
          data = {at::randn({kExamples, 5}, at::kDouble) * 3,
                  at::randint(3, {kExamples}, at::kLong)};
          return differentially_private(*net, options);
        }()),
        optimizer(net->parameters(), torch::optim::SGDOptions(0.1)) {
    stages.gradient = dp;
    step = std::make_unique<TrainingStep>(optimizer, std::move(stages));
  }

  static at::Tensor losses(torch::nn::Sequential& model, const Data& batch) {
    using Options = torch::nn::functional::CrossEntropyFuncOptions;
    return torch::nn::functional::cross_entropy(
        model->forward(std::get<0>(batch)), std::get<1>(batch), Options().reduction(torch::kNone));
  }
  StepResult train(const Data& batch) {
    return (*step)(batch, [&](const Data& part) { return losses(net, part); });
  }
  StepResult train() { return train(data); }

  /// The sum of clipped gradients, by a loop over examples in plain LibTorch.
  at::Tensor clipped_sum(double max_norm) {
    at::Tensor sum;
    for (int64_t i = 0; i < kExamples; ++i) {
      for (auto& p : net->parameters()) p.mutable_grad().reset();
      losses(net, slice(data, i, i + 1)).sum().backward();
      const auto flat = gradient();
      const auto part = flat * std::min(1.0, max_norm / flat.norm().item<double>());
      sum = sum.defined() ? sum + part : part;
    }
    for (auto& p : net->parameters()) p.mutable_grad().reset();
    return sum;
  }
  at::Tensor gradient() const {
    std::vector<at::Tensor> all;
    for (const auto& p : net->parameters()) all.push_back(p.grad().reshape(-1));
    return at::cat(all);
  }
  at::Tensor weights() const {
    std::vector<at::Tensor> all;
    for (const auto& p : net->parameters()) all.push_back(p.detach().reshape(-1));
    return at::cat(all);
  }

  torch::nn::Sequential net{nullptr};
  Data data;
  DifferentiallyPrivate dp;
  torch::optim::SGD optimizer;
  std::unique_ptr<TrainingStep> step;
};

/// All data in each step, so that any batch size is that of the sampling; no noise.
DifferentiallyPrivateOptions clip_only(double max_norm = 0.7) {
  return {.noise_multiplier = 0,
          .max_grad_norm = max_norm,
          .dataset_size = kExamples,
          .expected_batch = 10};
}

/// With noise that is repeatable.
DifferentiallyPrivateOptions noisy() {
  return {.noise_multiplier = 1,
          .max_grad_norm = 0.7,
          .dataset_size = kExamples,
          .expected_batch = kExamples,
          .noise = NoiseSource::fast_not_secure(5)};
}

TEST(DifferentiallyPrivate, WithoutNoiseIsTheClippedSumOverTheExpectedBatch) {
  Training run(clip_only());
  const auto expected = run.clipped_sum(0.7) / 10;
  const auto before = run.weights();
  EXPECT_TRUE(run.train().stepped());
  EXPECT_TRUE(testing::close(run.gradient(), expected));
  EXPECT_TRUE(testing::close(run.weights(), before - 0.1 * expected));
}

TEST(DifferentiallyPrivate, ALogicalBatchMayRunInPartsOfAnySize) {
  for (const int64_t physical : {1, 5, 100}) {
    auto options = clip_only();
    options.physical_batch = physical;
    Training run(options);
    const auto expected = run.clipped_sum(0.7) / 10;
    run.train();
    EXPECT_TRUE(testing::close(run.gradient(), expected)) << physical;
    EXPECT_EQ(run.dp.steps(), 1);
  }
}

TEST(DifferentiallyPrivate, AWindowOfMicroBatchesIsOneLogicalBatch) {
  Training run(clip_only(), {.accumulate = Accumulate::batches(3)});
  const auto expected = run.clipped_sum(0.7) / 10;
  EXPECT_FALSE(run.train(slice(run.data, 0, 5)).stepped());
  EXPECT_FALSE(run.train(slice(run.data, 5, 5)).stepped());
  EXPECT_TRUE(run.train(slice(run.data, 5, kExamples)).stepped());
  EXPECT_TRUE(testing::close(run.gradient(), expected));
  EXPECT_EQ(run.dp.steps(), 1);
}

TEST(DifferentiallyPrivate, FinishReleasesAPartialWindow) {
  Training run(noisy(), {.accumulate = Accumulate::batches(3)});
  run.train(slice(run.data, 0, 5));
  EXPECT_EQ(run.dp.steps(), 0);
  EXPECT_TRUE(run.step->finish().stepped());
  EXPECT_EQ(run.dp.steps(), 1);
  EXPECT_FALSE(run.step->finish().stepped());
  EXPECT_EQ(run.dp.steps(), 1);
}

TEST(DifferentiallyPrivate, TakesAFunctionThatHasItsBatchInside) {
  Training run(clip_only());
  const auto expected = run.clipped_sum(0.7) / 10;
  (*run.step)([&] { return Training::losses(run.net, run.data); });
  EXPECT_TRUE(testing::close(run.gradient(), expected));
}

// 5 sd of the mean, of the variance, and of the correlation between steps, over 2e5 draws.
TEST(DifferentiallyPrivate, AnEmptyBatchIsNoiseOfTheDeclaredSize) {
  torch::nn::Linear model(400, 250);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  const auto dp = differentially_private(
      *model,
      {.noise_multiplier = 1.5, .max_grad_norm = 0.3, .dataset_size = 1000, .expected_batch = 8});
  TrainingStep step(optimizer, {.gradient = dp});
  std::vector<at::Tensor> draws;
  for (int i = 0; i < 2; ++i) {
    const auto r =
        step(at::zeros({0, 400}), [&](const at::Tensor& x) { return model->forward(x).sum(1); });
    EXPECT_TRUE(r.stepped());
    EXPECT_TRUE(std::isnan(r.loss()));
    // The bias too, which no loss has touched.
    draws.push_back(
        at::cat({model->weight.grad().reshape(-1), model->bias.grad()}).to(at::kDouble) *
        (8 / (1.5 * 0.3)));
  }
  EXPECT_EQ(dp.steps(), 2);
  const auto n = static_cast<double>(draws[0].numel());
  for (const auto& z : draws) {
    EXPECT_NEAR(z.mean().item<double>(), 0, 5 / std::sqrt(n));
    EXPECT_NEAR(z.var().item<double>(), 1, 5 * std::sqrt(2 / n));
    const auto sorted = std::get<0>(z.sort());
    const auto normal = at::erfc(-sorted / std::sqrt(2.0)) / 2;
    const auto place = at::arange(1, n + 1, at::kDouble) / n;
    EXPECT_LT((normal - place).abs().max().item<double>(), 2.2 / std::sqrt(n));  // p about 1e-4
  }
  EXPECT_NEAR((draws[0] * draws[1]).mean().item<double>(), 0, 5 / std::sqrt(n));
}

TEST(DifferentiallyPrivate, TheLedgerHasOneEventForEachLogicalBatch) {
  auto options = noisy();
  options.physical_batch = 5;
  Training run(options);
  EXPECT_TRUE(run.dp.spent().empty());
  EXPECT_EQ(run.dp.epsilon(1e-3), 0);
  for (int i = 0; i < 3; ++i) run.train();
  ASSERT_EQ(run.dp.spent().events().size(), 1u);
  const auto& event = run.dp.spent().events()[0];
  EXPECT_EQ(event.steps, 3);
  EXPECT_EQ(event.noise_multiplier, 1);
  EXPECT_EQ(event.sample_rate, 1);
  EXPECT_EQ(event.sampling, Sampling::poisson);
  const PrivacyLedger expected({{1, 1, 3}});
  EXPECT_LE(run.dp.epsilon(1e-3), rdp_epsilon(expected, 1e-3).value);
  EXPECT_GE(run.dp.epsilon(1e-3), prv_epsilon(expected, 1e-3).lower);
}

TEST(DifferentiallyPrivate, AnExampleReplacedCountsTwice) {
  auto options = noisy();
  options.expected_batch = 6;
  options.sampling = Sampling::fixed_size;
  Training run(options);
  FixedSizeSampler sampler(kExamples, {.batch = 6, .steps_per_pass = 2});
  for (auto& batch : sampler.batches(run.data)) run.train(batch);
  const auto& event = run.dp.spent().events().at(0);
  EXPECT_EQ(event.noise_multiplier, 0.5);
  EXPECT_EQ(event.sample_rate, 0.5);
  EXPECT_EQ(event.sampling, Sampling::fixed_size);
  EXPECT_NEAR(run.dp.epsilon(1e-3), pld_epsilon(run.dp.spent(), 1e-3), 1e-2);
}

TEST(DifferentiallyPrivate, WithoutNoiseEpsilonIsInfinite) {
  Training run(clip_only());
  EXPECT_EQ(run.dp.epsilon(1e-3), 0);
  run.train();
  EXPECT_EQ(run.dp.epsilon(1e-3), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(run.dp.spent().empty());
}

TEST(DifferentiallyPrivate, OneExampleMovesTheSumByNoMoreThanTheNorm) {
  for (const double scale : {1.0, 1e6}) {
    Training with(clip_only()), without(clip_only());
    std::get<0>(with.data)[3] *= scale;
    with.train();
    without.train(select_examples(without.data, at::tensor({0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11})));
    const double moved = ((with.gradient() - without.gradient()) * 10).norm().item<double>();
    EXPECT_LE(moved, 0.7 * (1 + 1e-9));
    if (scale > 1) {
      EXPECT_GT(moved, 0.69);
    }
  }
}

TEST(DifferentiallyPrivate, AnExampleThatIsNotFiniteIsLeftOut) {
  Training with(clip_only()), without(clip_only());
  std::get<0>(with.data)[3].fill_(std::numeric_limits<double>::quiet_NaN());
  with.train();
  without.train(select_examples(without.data, at::tensor({0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11})));
  EXPECT_TRUE(testing::close(with.gradient(), without.gradient()));
}

TEST(DifferentiallyPrivate, RanksAddNoiseOnceInTotal) {
  Training whole(noisy());
  whole.train();
  std::vector<at::Tensor> gradients(3);
  testing::run_ranks(3, [&](const Reducer& ranks) {
    static std::mutex seeding;  // manual_seed is the process's
    std::unique_ptr<Training> run;
    {
      const std::lock_guard lock(seeding);
      run = std::make_unique<Training>(noisy(), TrainingStepOptions{.reducer = ranks});
    }
    const int64_t from[] = {0, 7, 7, kExamples};  // the second has an empty part
    run->train(slice(run->data, from[ranks.rank()], from[ranks.rank() + 1]));
    gradients[static_cast<size_t>(ranks.rank())] = run->gradient();
    EXPECT_EQ(run->dp.steps(), 1);
  });
  for (const auto& gradient : gradients) {
    EXPECT_TRUE(testing::same(gradient, gradients[0]));
    EXPECT_TRUE(testing::close(gradient, whole.gradient()));
  }
}

TEST(DifferentiallyPrivate, ABudgetEndsTheTraining) {
  auto options = noisy();
  options.noise_multiplier = 4;
  options.budget = PrivacyBudget{.epsilon = 2, .delta = 1e-3};
  Training run(options);
  const auto allowed = run.dp.steps_left();
  ASSERT_GT(allowed, 1);
  int64_t steps = 0;
  for (; !run.dp.exhausted(); ++steps) run.train();
  EXPECT_EQ(steps, allowed);
  EXPECT_LE(run.dp.epsilon(1e-3), 2);
  EXPECT_GT(spent_epsilon(PrivacyLedger({{4, 1, allowed + 1}}), 1e-3, Accounting::prv), 2);
  const auto before = run.weights();
  const auto message = message_of([&] { run.train(); });
  EXPECT_EQ(message.find("the privacy budget is spent: epsilon is "), 0u) << message;
  EXPECT_TRUE(testing::same(run.weights(), before));
  EXPECT_EQ(run.dp.steps(), allowed);
}

TEST(DifferentiallyPrivate, WithoutABudgetThereIsNoEnd) {
  Training run(noisy());
  EXPECT_EQ(run.dp.steps_left(), std::numeric_limits<int64_t>::max());
}

// Andrew et al. by hand, without noise.
TEST(DifferentiallyPrivate, TheNormFollowsAQuantile) {
  auto options = clip_only(2);
  options.expected_batch = kExamples;
  options.adaptive = QuantileClipping{.quantile = 0.25, .rate = 0.5};
  Training run(options);
  std::vector<double> norms;
  for (int64_t i = 0; i < kExamples; ++i) {
    const auto one =
        per_sample_norms(Training::losses(run.net, slice(run.data, i, i + 1)), *run.net);
    norms.push_back(one.item<double>());
  }
  const auto expected_gradient = run.clipped_sum(2) / kExamples;
  const auto shorter = std::count_if(norms.begin(), norms.end(), [](double n) { return n <= 2; });
  EXPECT_EQ(run.dp.max_grad_norm(), 2);
  run.train();
  EXPECT_TRUE(testing::close(run.gradient(), expected_gradient));
  const double share = static_cast<double>(shorter) / kExamples;
  EXPECT_NEAR(run.dp.max_grad_norm(), 2 * std::exp(-0.5 * (share - 0.25)), 1e-12);
  for (int i = 0; i < 60; ++i) run.train();
  const auto now = per_sample_norms(Training::losses(run.net, run.data), *run.net);
  EXPECT_NEAR((now <= run.dp.max_grad_norm()).to(at::kDouble).mean().item<double>(), 0.25, 0.17);
}

// The sum's noise is larger, so that both together spend what the ledger says.
TEST(DifferentiallyPrivate, ACountsNoiseComesOutOfTheSameBudget) {
  torch::nn::Linear model(400, 250);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  const auto dp = differentially_private(*model, {.noise_multiplier = 1.5,
                                                  .max_grad_norm = 0.3,
                                                  .dataset_size = 1000,
                                                  .expected_batch = 8,
                                                  .adaptive = QuantileClipping{.count_noise = 1}});
  TrainingStep step(optimizer, {.gradient = dp});
  step(at::zeros({0, 400}), [&](const at::Tensor& x) { return model->forward(x).sum(1); });
  const auto noise = model->weight.grad().to(at::kDouble) * 8;
  const double z = noise.std().item<double>() / 0.3;
  EXPECT_NEAR(1 / (z * z) + 1 / 4.0, 1 / (1.5 * 1.5), 5e-3);
  EXPECT_EQ(dp.spent().events().at(0).noise_multiplier, 1.5);
  EXPECT_NE(dp.max_grad_norm(), 0.3 * std::exp(-0.2 * -0.5));  // the count is noisy
}

TEST(DifferentiallyPrivate, IsSavedWithTheStep) {
  const auto options = [] {  // each with a source of its own
    auto result = noisy();
    result.adaptive = QuantileClipping{.count_noise = 2};
    return result;
  };
  Training whole(options()), first(options()), second(options());
  for (int i = 0; i < 6; ++i) whole.train();
  for (int i = 0; i < 4; ++i) first.train();
  {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < second.net->parameters().size(); ++i) {
      second.net->parameters()[i].copy_(first.net->parameters()[i]);
    }
  }
  second.step->load_state_dict(first.step->state_dict());
  EXPECT_EQ(second.dp.steps(), 4);
  EXPECT_EQ(second.dp.max_grad_norm(), first.dp.max_grad_norm());
  for (int i = 0; i < 2; ++i) second.train();
  EXPECT_TRUE(testing::same(second.weights(), whole.weights()));
  EXPECT_EQ(second.dp.epsilon(1e-3), whole.dp.epsilon(1e-3));
  EXPECT_EQ(second.dp.max_grad_norm(), whole.dp.max_grad_norm());
}

TEST(DifferentiallyPrivate, RefusesAStateThatDoesNotFit) {
  Training saved(noisy());
  saved.train();
  const auto state = saved.dp.state_dict();
  EXPECT_EQ(message_of([&] { saved.dp.load_state_dict(state); }),
            "a private gradient stage that has made 1 steps cannot load a state: they would be "
            "forgotten; load it into a new one");
  auto options = noisy();
  options.dataset_size = 100;
  Training other(options);
  EXPECT_EQ(
      message_of([&] { other.dp.load_state_dict(state); }),
      "the saved run was private for 12 examples, and this one is declared to have 100; resume "
      "with the data set of the saved run");
  options = noisy();
  options.sampling = Sampling::fixed_size;
  Training fixed(options);
  EXPECT_EQ(
      message_of([&] { fixed.dp.load_state_dict(state); }),
      "the saved run drew Poisson samples, and this one draws batches of a fixed size; nothing "
      "is proved of both together");
  Training same(noisy());
  auto forged = state;
  forged["spent/steps"] = at::zeros({0}, at::kLong);
  EXPECT_EQ(message_of([&] { same.dp.load_state_dict(forged); }),
            "the columns of the saved privacy ledger are of unequal length");
  forged = state;
  forged["steps"] = state_value(int64_t{7});
  EXPECT_EQ(message_of([&] { same.dp.load_state_dict(forged); }),
            "the saved privacy ledger accounts for 1 of 7 steps");
  auto secure = noisy();
  secure.noise = NoiseSource::secure();
  Training fresh(secure);
  EXPECT_EQ(message_of([&] { fresh.dp.load_state_dict(state); }),
            "the saved run drew noise from a not secure NoiseSource, and this one is secure; go on "
            "with the same kind");
  EXPECT_EQ(fresh.dp.steps(), 0);
  EXPECT_EQ(
      message_of([&] {
        Training plain(noisy());
        StateDict without = plain.step->state_dict();
        for (auto it = without.begin(); it != without.end();) {
          it = it->first.rfind("privacy/", 0) == 0 ? without.erase(it) : std::next(it);
        }
        plain.step->load_state_dict(without);
      }),
      "the saved state of the TrainingStep has no 'privacy/': it was saved without that stage; "
      "load it into a step with the stages it was saved from");
}

// ---- refusals

TEST(DifferentiallyPrivate, RefusesOptionsOutOfRange) {
  torch::nn::Linear model(2, 1);
  const DifferentiallyPrivateOptions good{
      .noise_multiplier = 1, .dataset_size = 100, .expected_batch = 10};
  const auto with = [&](const auto& change) {
    auto options = good;
    change(options);
    return message_of([&] { differentially_private(*model, options); });
  };
  EXPECT_EQ(
      with([](auto& o) { o.noise_multiplier = -1; }),
      "noise_multiplier must be set to a finite number, 0 or above, but is -1; calibrate_noise "
      "finds it for a target");
  EXPECT_EQ(with([](auto& o) { o.dataset_size = 0; }),
            "dataset_size must be set to the number of examples of the data set, but is 0");
  EXPECT_EQ(with([](auto& o) { o.expected_batch = 101; }),
            "expected_batch must lie above 0 and be at most dataset_size (100), but is 101");
  EXPECT_EQ(with([](auto& o) { o.max_grad_norm = 0; }),
            "max_grad_norm must be a finite number above 0, but is 0");
  EXPECT_EQ(with([](auto& o) { o.max_grad_norm = std::numeric_limits<double>::infinity(); }),
            "max_grad_norm must be a finite number above 0, but is inf");
  EXPECT_EQ(with([](auto& o) { o.budget = PrivacyBudget{.epsilon = 0, .delta = 1e-3}; }),
            "epsilon of a PrivacyBudget must be a finite number above 0, but is 0");
  EXPECT_EQ(with([](auto& o) { o.budget = PrivacyBudget{.epsilon = 1, .delta = 1}; }),
            "delta of a PrivacyBudget must lie in (0, 1), but is 1");
  EXPECT_EQ(with([](auto& o) {
              o.sampling = Sampling::fixed_size;
              o.expected_batch = 9.5;
            }),
            "expected_batch must be a whole number for batches of a fixed size, but is 9.5");
  EXPECT_EQ(with([](auto& o) { o.physical_batch = -1; }),
            "physical_batch must be 0 or more, but is -1");
  EXPECT_EQ(
      with([](auto& o) { o.adaptive = QuantileClipping{}; }),
      "count_noise of QuantileClipping is 0.5, which alone spends all that a noise multiplier of "
      "1 allows; it must be above half of it");
  EXPECT_EQ(
      with([](auto& o) {
        o.adaptive = QuantileClipping{.count_noise = 3};
        o.clipping = ExampleClipping::automatic(1);
      }),
      "adaptive moves one clipping norm over all parameters, and cannot be combined with another "
      "way of clipping; leave clipping unset");
}

TEST(DifferentiallyPrivate, WarnsOfADeltaThatMeansNothing) {
  CollectWarnings warnings;
  Training run(noisy());
  EXPECT_TRUE(warnings.texts.empty());
  run.dp.epsilon(0.1);
  run.dp.epsilon(0.1);
  ASSERT_EQ(warnings.texts.size(), 1u);
  EXPECT_EQ(
      warnings.texts[0],
      "delta is 0.1 for a data set of 12 examples: to publish one example in 10 as it is would "
      "count as private; take a delta well below 1 / 12");
}

TEST(DifferentiallyPrivate, RefusesParametersThatAreNotTheOptimizers) {
  torch::nn::Linear model(2, 1), other(2, 1);
  const auto dp = [&] { return differentially_private(*model, noisy()); };
  const auto step_with = [&](std::vector<at::Tensor> parameters) {
    torch::optim::SGD optimizer(std::move(parameters), torch::optim::SGDOptions(0.1));
    TrainingStep step(optimizer, {.gradient = dp()});
  };
  EXPECT_EQ(
      message_of([&] { step_with({model->weight}); }),
      "parameter 'bias' of the private model is trained by no optimizer of the step; give it to "
      "one, or freeze it by requires_grad_(false)");
  EXPECT_EQ(
      message_of([&] {
        step_with({model->weight, model->bias, other->bias});
      }),
      "an optimizer trains a parameter of shape [1] that is not the private model's (or trains it "
      "twice): its gradient would not be private");
  model->bias.requires_grad_(false);
  step_with({model->weight});
  model->to(at::kBFloat16);
  EXPECT_EQ(
      message_of<c10::TypeError>([&] { dp(); }),
      "parameter 'weight' is BFloat16, in which sums are rounded too coarsely to be private; keep "
      "it in float32, and compute in 16 bits by Precision::bf16()");
}

TEST(DifferentiallyPrivate, RefusesParametersAddedAfterTheStart) {
  Training run(noisy());
  run.train();
  run.net->push_back(torch::nn::Linear(3, 3));
  EXPECT_EQ(
      message_of([&] { run.train(); }),
      "parameters of the private model were added, removed or replaced after the start; make the "
      "stage again when the model is complete");
}

TEST(DifferentiallyPrivate, FreezingAParameterIsNoChangeOfParameters) {
  Training run(noisy());
  run.train();
  run.net[0]->as<torch::nn::Linear>()->weight.requires_grad_(false);
  const auto frozen = run.net[0]->as<torch::nn::Linear>()->weight.clone();
  run.train();
  EXPECT_TRUE(testing::same(run.net[0]->as<torch::nn::Linear>()->weight, frozen));
}

TEST(DifferentiallyPrivate, BelongsToOneStepAtATime) {
  Training run(noisy());
  EXPECT_EQ(
      message_of([&] { TrainingStep again(run.optimizer, {.gradient = run.dp}); }),
      "a private gradient stage belongs to one TrainingStep at a time, and has one; destroy that, "
      "or make another stage");
  run.step.reset();
  TrainingStep again(run.optimizer, {.gradient = run.dp});
}

TEST(DifferentiallyPrivate, RefusesAReducedLoss) {
  Training run(noisy());
  EXPECT_EQ(
      message_of([&] {
        (*run.step)(run.data, [&](const Data& d) { return Training::losses(run.net, d).mean(); });
      }),
      "private training needs one loss per example [B], but the loss function returned shape []; "
      "set its reduction to none, and reduce all but the first dimension");
  EXPECT_EQ(
      message_of([&] {
        (*run.step)(run.data, [&](const Data& d) {
          return Loss{Training::losses(run.net, d).sum(), kExamples};
        });
      }),
      "private training needs one loss per example [B], but the loss function returned a Loss{sum, "
      "count}, in which single examples cannot be told apart");
  EXPECT_EQ(message_of([&] {
              (*run.step)(run.data,
                          [&](const Data& d) { return Training::losses(run.net, d).slice(0, 1); });
            }),
            "private training needs one loss per example, but the loss function returned 11 for 12 "
            "examples");
  EXPECT_EQ(run.dp.steps(), 0);
  EXPECT_TRUE(run.train().stepped());  // nothing is left of them
}

TEST(DifferentiallyPrivate, RefusesGradientsThatAreNotItsOwn) {
  Training run(noisy(), {.accumulate = Accumulate::batches(2)});
  const auto expected =
      "something else wrote the gradient of parameter '0.weight' within a private "
      "step: it would not be clipped; let the step alone call backward, and do not "
      "change gradients before it is over";
  EXPECT_EQ(message_of([&] {
              (*run.step)(run.data, [&](const Data& d) {
                Training::losses(run.net, d).mean().backward();
                return Training::losses(run.net, d);
              });
            }),
            expected);
  run.train();
  Training::losses(run.net, run.data).mean().backward();
  EXPECT_EQ(message_of([&] { run.train(); }), expected);
  EXPECT_EQ(run.dp.steps(), 0);
}

TEST(DifferentiallyPrivate, RefusesBatchesThatAreNotWhatWasDeclared) {
  torch::nn::Linear model(2, 1);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  const auto loss = [&](const at::Tensor& x) { return model->forward(x).sum(1); };
  const auto x = at::randn({2000, 2});
  const auto run = [&](Sampling sampling, const std::vector<int64_t>& sizes) {
    const auto dp = differentially_private(
        *model,
        {.noise_multiplier = 1, .dataset_size = 2000, .expected_batch = 50, .sampling = sampling});
    TrainingStep step(optimizer, {.gradient = dp});
    return message_of([&] {
      for (const auto size : sizes) step(x.slice(0, 0, size), loss);
    });
  };
  EXPECT_EQ(
      run(Sampling::poisson, {150}),
      "a logical batch holds 150 examples, but Poisson samples of 50 of 2000 hardly ever have more "
      "than 121: more is spent than is accounted for; set expected_batch to what the sampler draws "
      "on average");
  std::vector<int64_t> large;
  for (int i = 0; i < 30; ++i) large.push_back(69 + i % 3);
  EXPECT_NE(run(Sampling::poisson, large).find(" examples together, but Poisson samples of 50"),
            std::string::npos);
  EXPECT_EQ(run(Sampling::poisson, std::vector<int64_t>(40, 50)),
            "the last 12 logical batches have 50 examples each, which is no Poisson sampling: the "
            "accounting does not hold for shuffled batches; draw them by PoissonSampler, or by "
            "FixedSizeSampler with sampling = Sampling::fixed_size");
  EXPECT_EQ(
      run(Sampling::fixed_size, {50, 49}),
      "a logical batch holds 49 examples, but the declared fixed size is 50; draw the batches by "
      "FixedSizeSampler");
  EXPECT_EQ(message_of([&] {
              Training over(noisy());
              over.train(select_examples(over.data, at::zeros({13}, at::kLong)));
            }),
            "a logical batch holds 13 examples, but the data set was declared to have 12; set "
            "dataset_size to what it has");
}

TEST(DifferentiallyPrivate, AcceptsWhatAnHonestSamplerDraws) {
  torch::nn::Linear model(1, 1);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  for (const double expected : {0.3, 4.0, 50.0, 199.0}) {
    const auto dp = differentially_private(
        *model, {.noise_multiplier = 1, .dataset_size = 200, .expected_batch = expected});
    TrainingStep step(optimizer, {.gradient = dp});
    PoissonSampler sampler(200, {.expected_batch = expected, .steps_per_pass = 300});
    for (auto& batch : sampler.batches(at::randn({200, 1}))) {
      step(batch, [&](const at::Tensor& x) { return model->forward(x).sum(1); });
    }
    EXPECT_EQ(dp.steps(), 300);
  }
}

/// Takes the mean over the batch away, where no gradient shows it.
struct DetachedMean : torch::nn::Module {
  DetachedMean() : linear(register_module("linear", torch::nn::Linear(5, 3))) {}
  at::Tensor forward(const at::Tensor& x) {
    const auto h = linear->forward(x);
    return h - h.mean(0, true).detach();
  }
  torch::nn::Linear linear;
};

TEST(DifferentiallyPrivate, FindsExamplesMixedWhereNoGradientFlows) {
  at::manual_seed(1);
  DetachedMean model;
  torch::optim::SGD optimizer(model.parameters(), torch::optim::SGDOptions(0.1));
  const auto x = at::randn({kExamples, 5});
  const auto loss = [&](const at::Tensor& part) { return model.forward(part).square().sum(1); };
  {
    TrainingStep step(optimizer, {.gradient = differentially_private(model, noisy())});
    const auto message = message_of<c10::NotImplementedError>([&] { step(x, loss); });
    EXPECT_EQ(message.find("the loss of an example changes with what is in the other examples ("),
              0u)
        << message;
    EXPECT_NE(message.find("look for statistics over the batch, such as a mean or a norm over "
                           "dimension 0, also detached ones, and take them over each example"),
              std::string::npos);
  }
  auto options = noisy();
  options.check_mixing = false;
  TrainingStep step(optimizer, {.gradient = differentially_private(model, options)});
  EXPECT_TRUE(step(x, loss).stepped());
}

TEST(DifferentiallyPrivate, LeavesRandomNumbersAndBuffersAsTheyAre) {
  const auto train = [](bool check) {
    auto options = noisy();
    options.check_mixing = check;
    Training run(options);
    const auto calls = run.net->register_buffer("calls", at::zeros({}));
    for (int i = 0; i < 3; ++i) {
      (*run.step)(run.data, [&](const Data& d) {
        calls.add_(1);
        const auto& [x, y] = d;
        return Training::losses(run.net, {at::dropout(x, 0.3, true), y});
      });
    }
    return at::cat({run.weights(), calls.reshape(-1).to(at::kDouble)});
  };
  EXPECT_TRUE(testing::same(train(true), train(false)));
}

TEST(DifferentiallyPrivate, SaysWhenItCannotCheckForMixing) {
  Training run(noisy());
  double calls = 0;
  EXPECT_EQ(
      message_of([&] {
        (*run.step)(run.data,
                    [&](const Data& d) { return Training::losses(run.net, d) * ++calls; });
      }),
      "the loss function does not give the same losses for the same batch, so that whether it "
      "mixes examples cannot be checked; let it draw random numbers from LibTorch's generators "
      "only, or set check_mixing to false");
}

TEST(DifferentiallyPrivate, RefusesBatchNorm) {
  torch::nn::Sequential net(torch::nn::Linear(5, 4), torch::nn::BatchNorm1d(4));
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1));
  auto options = noisy();
  options.check_mixing = false;
  TrainingStep step(optimizer, {.gradient = differentially_private(*net, options)});
  const auto message = message_of<c10::NotImplementedError>([&] {
    step(at::randn({kExamples, 5}), [&](const at::Tensor& x) { return net->forward(x).sum(1); });
  });
  EXPECT_NE(message.find("batch norm"), std::string::npos) << message;
}

TEST(DifferentiallyPrivate, RefusesStagesThatLookAtPrivateLosses) {
  const auto with = [](TrainingStepOptions stages) {
    return message_of<c10::NotImplementedError>([&] { Training run(noisy(), std::move(stages)); });
  };
  EXPECT_EQ(
      with({.precision = Precision::fp16()}),
      "private training cannot have a LossScaler: its scale would follow which examples overflow, "
      "which no noise covers; take Precision::bf16() or fp32()");
  EXPECT_EQ(
      with({.spike = SpikeGuardOptions{}}),
      "private training cannot have a SpikeGuard: it decides on the losses of the examples drawn, "
      "which no noise covers; clip the noisy gradients by clip::zclip() or clip::autoclip() "
      "instead");
  EXPECT_EQ(
      with({.accumulate = Accumulate::counts(10)}),
      "private training cannot have a window of counts: what is in the examples would decide how "
      "many make a logical batch; measure it in micro-batches (Accumulate::batches)");
}

}  // namespace
}  // namespace torchlore
