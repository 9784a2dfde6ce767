#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <tuple>

#include "support/fails_in_backward.hpp"
#include "support/fake_clock.hpp"
#include "support/message.hpp"
#include "support/out_of_memory.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::message_of;
using testing::same;
using Data = std::tuple<at::Tensor, at::Tensor>;

struct Trained {
  explicit Trained(TrainingStepOptions options = {}) {
    at::set_num_threads(1);  // the nets are tiny
    at::manual_seed(3);
    net = nn::Sequential(nn::Linear(5, 7), nn::BatchNorm1d(7), nn::Tanh(), nn::Dropout(0.2),
                         nn::Linear(7, 4));
    optimizer = std::make_unique<torch::optim::AdamW>(net->parameters());
    if (options.retry) options.retry->model = &*net;
    if (options.split) options.split->model = &*net;
    step = std::make_unique<TrainingStep>(*optimizer, std::move(options));
    batch = {at::randn({12, 5}), at::randint(4, {12}, at::kLong)};
    at::manual_seed(4);
  }
  at::Tensor loss(const Data& data) {
    return nn::functional::cross_entropy(net->forward(std::get<0>(data)), std::get<1>(data));
  }
  std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> all;
    for (const auto& p : net->parameters()) all.push_back(p.detach().clone());
    return all;
  }
  std::vector<at::Tensor> everything() {
    std::vector<at::Tensor> all;
    for (const auto& [name, tensor] : module_state_dict(*net)) all.push_back(tensor.clone());
    for (const auto& p : net->parameters()) {
      all.push_back(p.grad().defined() ? p.grad().clone() : at::zeros({0}));
    }
    all.push_back(at::rand({2}));
    return all;
  }
  nn::Sequential net{nullptr};
  std::unique_ptr<torch::optim::AdamW> optimizer;
  std::unique_ptr<TrainingStep> step;
  Data batch;
};

void expect_same(const std::vector<at::Tensor>& actual, const std::vector<at::Tensor>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(same(actual[i], expected[i])) << i;
}

/// The identity that fails at its first call, in backward.
struct FailsOnce {
  bool failed = false;
  at::Tensor operator()(const at::Tensor& x) {
    if (std::exchange(failed, true)) return x;
    return testing::FailsInBackward::apply(x);
  }
};

TEST(StepRetry, EqualsTheRunWithoutFaults) {
  testing::FakeClock time;
  const TrainingStepOptions options{.accumulate = Accumulate::batches(2),
                                    .retry = RetryOptions{.clock = time.clock()}};
  Trained plain({.accumulate = Accumulate::batches(2)}), retried(options);
  for (int i = 0; i < 6; ++i) {
    at::manual_seed(i);
    const auto expected = (*plain.step)([&] { return plain.loss(plain.batch); });
    const auto state = plain.everything();
    at::manual_seed(i);
    FailsOnce fails;
    const auto r = (*retried.step)([&] { return fails(retried.loss(retried.batch)); });
    EXPECT_EQ(r.outcome(), expected.outcome());
    EXPECT_EQ(r.loss(), expected.loss());
    expect_same(retried.everything(), state);
  }
  EXPECT_EQ(time.waits.size(), 6U);
  EXPECT_EQ(retried.step->steps(), 3);
}

TEST(StepRetry, TheWindowGoesOnWhereItGivesUp) {
  testing::FakeClock time;
  Trained plain({.accumulate = Accumulate::batches(2)});
  Trained retried({.accumulate = Accumulate::batches(2),
                   .retry = RetryOptions{.max_retries = 1, .clock = time.clock()}});
  const auto half = [](Trained& run) {
    at::manual_seed(5);
    return (*run.step)([&] { return run.loss(run.batch); });
  };
  half(plain);
  half(retried);
  EXPECT_THROW(
      (*retried.step)([&] { return testing::FailsInBackward::apply(retried.loss(retried.batch)); }),
      c10::OutOfMemoryError);
  EXPECT_EQ(retried.step->window().batches(), 1);
  half(plain);
  const auto expected = plain.everything();
  EXPECT_TRUE(half(retried).stepped());
  expect_same(retried.everything(), expected);
}

TEST(StepRetry, PassesWrongCallsOnAtOnce) {
  Trained run({.retry = RetryOptions{}});
  EXPECT_EQ(message_of<c10::ValueError>([&] { (*run.step)([&] {
                                                return at::zeros({2, 2});
                                              }); }),
            "a loss function must return a 0-d mean, a Loss{sum, count} or one loss per example "
            "[B], but returned shape [2, 2]");
  EXPECT_TRUE(run.step->window().empty());
  EXPECT_EQ(
      message_of<c10::ValueError>([] { Trained bad({.retry = RetryOptions{.max_retries = -1}}); }),
      "max_retries must be 0 or more, but is -1");
}

TEST(StepRetry, RecoversFromAFaultAtEveryAllocationOfForwardAndBackward) {
  const MemoryMeter meter;  // its first one wants to stand below the faulty allocator
  auto& allocator = testing::FaultyAllocator::install();
  testing::FakeClock time;
  const auto run = [&](bool with_retry) {
    Trained r(
        {.accumulate = Accumulate::batches(2),
         .retry = with_retry ? std::optional(RetryOptions{.clock = time.clock()}) : std::nullopt});
    (*r.step)([&] { return r.loss(r.batch); });
    return r;
  };
  // The second micro-batch meets gradients, and steps; the step itself is not retried.
  auto plain = run(false);
  (*plain.step)([&] { return plain.loss(plain.batch); });
  const auto expected = plain.everything();
  for (int64_t i = 0;; ++i) {
    auto retried = run(true);
    bool armed = false;
    try {
      (*retried.step)([&] {
        if (!std::exchange(armed, true)) allocator.fail_at(i);
        return retried.loss(retried.batch);
      });
    } catch (const c10::OutOfMemoryError&) {
      allocator.never_fail();
      EXPECT_TRUE(time.waits.empty()) << "beyond backward, in the optimizer's step";
      EXPECT_GT(i, 30);
      break;
    }
    allocator.never_fail();
    EXPECT_EQ(time.waits.size(), 1U);
    time.waits.clear();
    expect_same(retried.everything(), expected);
    if (HasFailure()) FAIL() << "fault at allocation " << i;
  }
}

/// Without dropout and batch norm, whose values depend on the parts.
struct PlainTrained : Trained {
  explicit PlainTrained(TrainingStepOptions options = {}) : Trained(std::move(options)) {
    net->eval();
  }
};

/// Runs out of memory for parts above a size, in backward.
at::Tensor limited(const at::Tensor& loss, const Data& part, int64_t largest) {
  if (std::get<0>(part).size(0) <= largest) return loss;
  return testing::FailsInBackward::apply(loss);
}

TEST(StepSplit, TrainsAsOnTheWholeBatch) {
  for (const int64_t largest : {12, 5, 1}) {
    PlainTrained plain({.accumulate = Accumulate::batches(2), .clip = clip::norm(1.0)});
    PlainTrained parts(
        {.accumulate = Accumulate::batches(2), .clip = clip::norm(1.0), .split = SplitOptions{}});
    for (int i = 0; i < 4; ++i) {
      const auto expected =
          (*plain.step)(plain.batch, [&](const Data& d) { return plain.loss(d); });
      const auto r = (*parts.step)(
          parts.batch, [&](const Data& d) { return limited(parts.loss(d), d, largest); });
      EXPECT_EQ(r.outcome(), expected.outcome());
      EXPECT_NEAR(r.loss(), expected.loss(), 1e-5);
      const auto ours = parts.parameters(), theirs = plain.parameters();
      for (size_t k = 0; k < ours.size(); ++k) {
        EXPECT_TRUE(largest == 12
                        ? same(ours[k], theirs[k])
                        : ::testing::AssertionResult(at::allclose(
                              ours[k].to(at::kDouble), theirs[k].to(at::kDouble), 1e-4, 1e-5)))
            << "tensor " << k << ", parts up to " << largest;
      }
    }
    EXPECT_EQ(parts.step->sizes()->fits(), largest == 5 ? 3 : largest);
    EXPECT_EQ(plain.step->sizes(), nullptr);
  }
}

TEST(StepSplit, WeighsSumsByTheirCounts) {
  PlainTrained plain, parts({.split = SplitOptions{}});
  const auto sum = [](PlainTrained& run, const Data& d) {
    const auto losses = nn::functional::cross_entropy(
        run.net->forward(std::get<0>(d)), std::get<1>(d),
        nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
    const auto chosen = std::get<1>(d) != 0;  // an unequal number in each part
    return Loss{(losses * chosen).sum(), chosen.sum()};
  };
  const auto expected = (*plain.step)(plain.batch, [&](const Data& d) { return sum(plain, d); });
  const auto r = (*parts.step)(parts.batch, [&](const Data& d) {
    auto loss = sum(parts, d);
    loss.sum = limited(loss.sum, d, 4);
    return loss;
  });
  EXPECT_NEAR(r.loss(), expected.loss(), 1e-6);
  const auto ours = parts.parameters(), theirs = plain.parameters();
  for (size_t k = 0; k < ours.size(); ++k) {
    EXPECT_TRUE(at::allclose(ours[k].to(at::kDouble), theirs[k].to(at::kDouble), 1e-4, 1e-6)) << k;
  }
}

TEST(StepSplit, LeavesTheWindowAsItWasWhereNothingFits) {
  PlainTrained plain({.accumulate = Accumulate::batches(2)});
  PlainTrained parts({.accumulate = Accumulate::batches(2), .split = SplitOptions{}});
  const auto half = [](PlainTrained& run) {
    return (*run.step)(run.batch, [&](const Data& d) { return run.loss(d); });
  };
  half(plain);
  half(parts);
  EXPECT_THROW(
      (*parts.step)(parts.batch, [&](const Data& d) { return limited(parts.loss(d), d, 0); }),
      c10::OutOfMemoryError);
  half(plain);
  // What did not fit is remembered: the next batch is split.
  EXPECT_TRUE(half(parts).stepped());
  const auto ours = parts.parameters(), theirs = plain.parameters();
  for (size_t k = 0; k < ours.size(); ++k) {
    EXPECT_TRUE(at::allclose(ours[k].to(at::kDouble), theirs[k].to(at::kDouble), 1e-4, 1e-6)) << k;
  }
}

TEST(StepSplit, SavesTheSizesThatFit) {
  PlainTrained run({.split = SplitOptions{}}), loaded({.split = SplitOptions{}});
  (*run.step)(run.batch, [&](const Data& d) { return limited(run.loss(d), d, 6); });
  loaded.step->load_state_dict(run.step->state_dict());
  EXPECT_EQ(loaded.step->sizes()->fits(), 6);
  EXPECT_EQ(loaded.step->sizes()->fails(), 12);
}

TEST(StepSplit, AnEmptyBatchFillsTheWindow) {
  PlainTrained run({.split = SplitOptions{}});
  const Data empty{at::zeros({0, 5}), at::zeros({0}, at::kLong)};
  const auto r = (*run.step)(empty, [&](const Data& d) { return run.loss(d); });
  EXPECT_EQ(r.outcome(), StepResult::Outcome::nothing);
}

TEST(StepRecovery, RetriesWhatCannotBeSplitFurther) {
  testing::FakeClock time;
  PlainTrained run({.retry = RetryOptions{.max_retries = 1, .clock = time.clock()},
                    .split = SplitOptions{.sizes = {.min_size = 6}}});
  int attempts = 0;
  const auto r = (*run.step)(
      run.batch, [&](const Data& d) { return limited(run.loss(d), d, ++attempts > 2 ? 12 : 0); });
  EXPECT_TRUE(r.stepped());
  EXPECT_EQ(attempts, 2 + 2) << "12 and 6 failed; then two parts of 6";
  EXPECT_EQ(time.waits.size(), 1U);
}

/// Another rank whose words are scripted: the value it brings to each agreement, in order.
Reducer scripted(std::vector<double> others) {
  auto next = std::make_shared<size_t>(0);
  return {2, 0, [others, next](at::Tensor& value, ReduceOp op) {
            const double other = others.at((*next)++);
            const double own = value.item<double>();
            value.fill_(op == ReduceOp::sum ? own + other : std::max(own, other));
          }};
}

TEST(StepRecovery, RanksAgreeAfterTheForwardPassAndAfterBackward) {
  testing::FakeClock time;
  // The forward pass of the other rank fails; again: forward well, the window's power of two, backward
  // fails; again, well: forward, window, attempt. Then both count one micro-batch.
  Trained run({.retry = RetryOptions{.clock = time.clock()},
               .reducer = scripted({1, 1, 0, 1, 1, 0, 1, 0, 1, 1})});
  int calls = 0;
  const auto r = (*run.step)([&] {
    ++calls;
    return run.loss(run.batch);
  });
  EXPECT_EQ(calls, 3);
  EXPECT_TRUE(r.stepped());
  const auto actual = run.everything();
  Trained plain;
  (*plain.step)([&] { return plain.loss(plain.batch); });
  expect_same(actual, plain.everything());
}

/// A second rank that has what this one has; counts how often they agree.
struct Echo {
  std::shared_ptr<int> agreements = std::make_shared<int>(0);
  Reducer reducer() const {
    return {2, 0, [count = agreements](at::Tensor& value, ReduceOp op) {
              ++*count;
              if (op == ReduceOp::sum) value.mul_(2);
            }};
  }
};

/// How often ranks agree in one step on so many examples.
int agreements(TrainingStepOptions options, int64_t examples, const StateDict& sizes = {}) {
  Echo ranks;
  options.reducer = ranks.reducer();
  PlainTrained run(std::move(options));
  auto state = run.step->state_dict();
  for (const auto& [key, value] : sizes) state["split/" + key] = value;
  run.step->load_state_dict(state);
  const Data batch{at::ones({examples, 5}), at::zeros({examples}, at::kLong)};
  (*run.step)(batch, [&](const Data& d) { return run.loss(d); });
  return *ranks.agreements;
}

TEST(StepRecovery, RanksAgreeEquallyOftenWhateverTheirBatches) {
  const TrainingStepOptions retry{.retry = RetryOptions{}};
  EXPECT_EQ(agreements(retry, 0), agreements(retry, 12));
  const TrainingStepOptions split{.split = SplitOptions{}};
  EXPECT_EQ(agreements(split, 0), agreements(split, 12));
  SizeSearch known;
  known.failed(12, 12);
  known.fitted(6);
  EXPECT_EQ(agreements(split, 6, known.state_dict()), agreements(split, 12, known.state_dict()))
      << "one part, and two";
}

TEST(StepRecovery, StagesTakeTheStepsRanksUnlessTheyHaveTheirOwn) {
  Echo own;
  const int without = agreements({}, 12);
  EXPECT_EQ(agreements({.retry = RetryOptions{}}, 12), without + 2) << "forward, attempt";
  EXPECT_EQ(agreements({.retry = RetryOptions{.reducer = own.reducer()}}, 12), without + 1);
  EXPECT_EQ(*own.agreements, 1);
  EXPECT_EQ(agreements({.split = SplitOptions{}}, 12), without + 3) << "size, forward, attempt";
  EXPECT_EQ(agreements({.split = SplitOptions{.reducer = own.reducer()}}, 12), without + 1);
  EXPECT_EQ(*own.agreements, 1 + 2);
}

TEST(StepRecovery, RefusesToSplitAWindowOfCountsOnSeveralRanks) {
  EXPECT_EQ(message_of<c10::NotImplementedError>([] {
              Trained run({.accumulate = Accumulate::counts(5),
                           .split = SplitOptions{},
                           .reducer = scripted({})});
            }),
            "split cannot be used on several ranks with a window of counts: ranks would count "
            "unequal numbers of parts; measure the window in micro-batches (Accumulate::batches)");
}

}  // namespace
}  // namespace torchlore
