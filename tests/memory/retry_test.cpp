#include "torchlore/memory/retry.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>

#include <new>
#include <stdexcept>

#include "support/fails_in_backward.hpp"
#include "support/fake_clock.hpp"
#include "support/message.hpp"
#include "support/out_of_memory.hpp"
#include "support/tolerance.hpp"
#include "support/warnings.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/core/rng.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::FakeClock;
using testing::message_of;
using testing::same;

[[noreturn]] void run_out_of_memory() { C10_THROW_ERROR(OutOfMemoryError, "injected"); }

/// Fails `failures` times, then returns 7.
struct Flaky {
  int failures = 0;
  int calls = 0;
  int operator()() {
    if (calls++ < failures) run_out_of_memory();
    return 7;
  }
};

TEST(Retry, CompilesAsUsersWriteIt) {
  auto model = std::make_shared<nn::LinearImpl>(2, 2);
  const auto x = at::ones({1, 2});
  auto y = retry([=] { return model->forward(x); }, {.max_retries = 3});
  EXPECT_TRUE(same(y, model->forward(x)));
  nn::Linear holder(2, 2);
  EXPECT_EQ(retry([=]() mutable { return holder->forward(x); }).size(1), 2);
}

TEST(Retry, TakesVoidMoveOnlyAndReferenceResults) {
  int calls = 0;
  retry([&] { ++calls; });
  EXPECT_EQ(calls, 1);
  const std::unique_ptr<int> owned = retry([] { return std::make_unique<int>(3); });
  EXPECT_EQ(*owned, 3);
  int& same_object = retry([&]() -> int& { return calls; });
  EXPECT_EQ(&same_object, &calls);
}

TEST(Retry, CountsRetriesNotAttempts) {
  for (int failures = 0; failures <= 3; ++failures) {
    FakeClock time;
    Flaky f{failures};
    EXPECT_EQ(retry(f, {.max_retries = 3, .clock = time.clock()}), 7);
    EXPECT_EQ(f.calls, failures + 1);
    EXPECT_EQ(time.waits.size(), static_cast<size_t>(failures));
  }
  FakeClock time;
  Flaky f{4};
  EXPECT_THROW(retry(f, {.max_retries = 3, .clock = time.clock()}), c10::OutOfMemoryError);
  EXPECT_EQ(f.calls, 4);
}

TEST(Retry, BacksOffExponentiallyBelowACapWithFullJitter) {
  FakeClock time{.chance = 1};
  Flaky f{6};
  retry(f, {.max_retries = 6,
            .first_wait = Seconds(1),
            .factor = 3,
            .max_wait = Seconds(20),
            .clock = time.clock()});
  EXPECT_EQ(time.waits, (std::vector<double>{1, 3, 9, 20, 20, 20}));
  FakeClock lucky{.chance = 0};
  Flaky again{2};
  retry(again, {.clock = lucky.clock()});
  EXPECT_TRUE(lucky.waits.empty());  // a wait of 0 is none
}

TEST(Retry, TheSystemsChanceLiesBelowTheBound) {
  std::vector<double> waits;
  Flaky f{50};
  retry(f, {.max_retries = 50,
            .first_wait = Seconds(2),
            .factor = 1,
            .clock = {.sleep = [&](Seconds wait) { waits.push_back(wait.count()); }}});
  ASSERT_EQ(waits.size(), 50U);
  const auto [low, high] = std::minmax_element(waits.begin(), waits.end());
  EXPECT_GT(*low, 0);
  EXPECT_LT(*low, 0.5);  // misses with a probability of (3/4)^50
  EXPECT_GT(*high, 1.5);
  EXPECT_LT(*high, 2);
}

TEST(Retry, RethrowsPermanentErrorsAtOnceAndUntouched) {
  FakeClock time;
  int calls = 0;
  const auto wrong_shape = [&] {
    ++calls;
    at::mm(at::zeros({2, 3}), at::zeros({2, 3}));
  };
  EXPECT_EQ(message_of([&] { retry(wrong_shape, {.clock = time.clock()}); }),
            message_of(wrong_shape));
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(time.waits.empty());
  struct Foreign {};
  EXPECT_THROW(retry([] { throw Foreign(); }, {.clock = time.clock()}), Foreign);
}

TEST(Retry, GivesTheOriginalErrorWithItsHistory) {
  FakeClock time;
  int calls = 0;
  const auto f = [&] {
    if (calls++ == 1) C10_THROW_ERROR(DistNetworkError, "lost");
    run_out_of_memory();
  };
  const RetryOptions options{.max_retries = 2, .first_wait = Seconds(1), .clock = time.clock()};
  EXPECT_EQ(message_of<c10::OutOfMemoryError>([&] { retry(f, options); }),
            "injected (retry gave up after 3 attempts: no retries are left; attempt 1 at 0 s: "
            "injected; attempt 2 at 0.5 s: lost; attempt 3 at 1.5 s: injected)");
  calls = 1;
  const auto turns_bad = [&] {
    if (calls++ == 1) run_out_of_memory();
    TORCH_CHECK_VALUE(false, "wrong");
  };
  EXPECT_EQ(message_of<c10::ValueError>([&] { retry(turns_bad, options); }),
            "wrong (retry gave up after 2 attempts: the last error is not one that may pass; "
            "attempt 1 at 0 s: injected; attempt 2 at 0.5 s: wrong)");
}

TEST(Retry, WarnsOfTheHistoryThatATypeCannotHold) {
  FakeClock time;
  const testing::CollectWarnings warnings;
  EXPECT_THROW(retry([] { throw std::bad_alloc(); }, {.max_retries = 1, .clock = time.clock()}),
               std::bad_alloc);
  ASSERT_EQ(warnings.texts.size(), 1U);
  EXPECT_EQ(warnings.texts[0],
            "retry gave up after 2 attempts: no retries are left; attempt 1 at 0 s: "
            "std::bad_alloc; attempt 2 at 0.05 s: the same");
}

TEST(Retry, BeginsNoRetryAfterTheDeadline) {
  FakeClock time;
  Flaky f{10};
  const RetryOptions options{.max_retries = 10,
                             .first_wait = Seconds(4),
                             .factor = 1,
                             .deadline = std::chrono::seconds(5),
                             .clock = time.clock()};
  EXPECT_EQ(message_of<c10::OutOfMemoryError>([&] { retry(f, options); }),
            "injected (retry gave up after 3 attempts: the deadline has come; attempt 1 at 0 s: "
            "injected; attempt 2 at 2 s: the same; attempt 3 at 4 s: the same)");
  EXPECT_EQ(f.calls, 3);
}

TEST(Retry, TellsOfEachFailedAttempt) {
  FakeClock time;
  std::vector<FailedAttempt> seen;
  Flaky f{9};
  EXPECT_ANY_THROW(retry(f, {.max_retries = 1,
                             .first_wait = Seconds(3),
                             .on_failure = [&](const auto& failed) { seen.push_back(failed); },
                             .clock = time.clock()}));
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].attempt, 1);
  EXPECT_EQ(seen[0].kind, ErrorKind::out_of_memory);
  EXPECT_EQ(seen[0].error, "injected");
  EXPECT_TRUE(seen[0].retried);
  EXPECT_EQ(seen[0].wait.count(), 1.5);
  EXPECT_EQ(seen[1].attempt, 2);
  EXPECT_EQ(seen[1].elapsed.count(), 1.5);
  EXPECT_FALSE(seen[1].retried);
  EXPECT_EQ(seen[1].wait.count(), 0);
}

TEST(Retry, TakesAnotherClassification) {
  FakeClock time;
  int calls = 0;
  const auto f = [&] {
    if (calls++ == 0) throw std::runtime_error("the file server is asleep");
  };
  retry(f, {.classify =
                [](const std::exception& error) {
                  return std::string(error.what()).find("asleep") != std::string::npos
                             ? ErrorKind::time_out
                             : classify_error(error);
                },
            .clock = time.clock()});
  EXPECT_EQ(calls, 2);
}

/// A net with everything that an attempt may change, and a step on it.
struct Net {
  Net() {
    at::set_num_threads(1);  // the nets are tiny
    at::manual_seed(1);
    net = nn::Sequential(nn::Linear(4, 6), nn::BatchNorm1d(6), nn::GELU(), nn::Dropout(0.3),
                         nn::Linear(6, 3));
    optimizer =
        std::make_unique<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(0.1));
    x = at::randn({5, 4});
  }
  at::Tensor forward_backward() {
    auto loss = net->forward(x).square().mean();
    loss.backward();
    return loss.detach();
  }
  std::vector<at::Tensor> everything() {
    std::vector<at::Tensor> all;
    for (const auto& [name, tensor] : module_state_dict(*net)) all.push_back(tensor.clone());
    for (const auto& p : net->parameters()) {
      all.push_back(p.grad().defined() ? p.grad().clone() : at::zeros({0}));
    }
    for (const auto& p : net->parameters()) {
      const auto found = optimizer->state().find(p.unsafeGetTensorImpl());
      if (found == optimizer->state().end()) continue;
      auto& state = static_cast<torch::optim::AdamWParamState&>(*found->second);
      all.insert(all.end(), {state.exp_avg().clone(), state.exp_avg_sq().clone(),
                             at::scalar_tensor(state.step(), at::kLong)});
    }
    for (const auto& [name, state] : RngState::capture().state_dict()) all.push_back(state);
    return all;
  }
  nn::Sequential net{nullptr};
  std::unique_ptr<torch::optim::AdamW> optimizer;
  at::Tensor x;
};

void expect_same(const std::vector<at::Tensor>& actual, const std::vector<at::Tensor>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(same(actual[i], expected[i])) << "tensor " << i;
  }
}

TEST(Retry, PutsBackGradientsBuffersAndRandomNumbers) {
  FakeClock time;
  for (const bool with_gradients : {false, true}) {
    Net plain, retried;
    at::manual_seed(2);
    if (with_gradients) plain.forward_backward();
    plain.forward_backward();
    at::manual_seed(2);
    if (with_gradients) retried.forward_backward();
    int calls = 0;
    retry(
        [&] {
          retried.forward_backward();
          if (calls++ < 2) run_out_of_memory();
        },
        {.model = &*retried.net, .clock = time.clock()});
    expect_same(retried.everything(), plain.everything());
  }
}

TEST(Retry, LeavesEverythingAsItWasWhenItGivesUp) {
  FakeClock time;
  Net net;
  net.forward_backward();
  net.net->parameters()[0].mutable_grad() = at::Tensor();
  const auto handle = net.net->parameters()[1].grad();
  const auto before = net.everything();
  const auto fail = [&] {
    net.forward_backward();
    net.optimizer->step();
    TORCH_CHECK_VALUE(false, "wrong");
  };
  EXPECT_THROW(retry(fail, {.model = &*net.net, .optimizers = {net.optimizer.get()}}),
               c10::ValueError);
  expect_same(net.everything(), before);
  EXPECT_FALSE(net.net->parameters()[0].grad().defined());
  EXPECT_TRUE(net.net->parameters()[1].grad().is_same(handle));
}

TEST(Retry, PutsBackOptimizers) {
  FakeClock time;
  for (const bool stepped_before : {false, true}) {
    Net plain, retried;
    const auto step = [](Net& net) {
      net.optimizer->zero_grad();
      net.forward_backward();
      net.optimizer->param_groups()[0].options().set_lr(
          net.optimizer->param_groups()[0].options().get_lr() * 0.5);
      net.optimizer->step();
    };
    at::manual_seed(2);
    if (stepped_before) step(plain);
    step(plain);
    at::manual_seed(2);
    if (stepped_before) step(retried);
    int calls = 0;
    retry(
        [&] {
          step(retried);
          if (calls++ < 2) run_out_of_memory();
        },
        {.model = &*retried.net, .optimizers = {retried.optimizer.get()}, .clock = time.clock()});
    expect_same(retried.everything(), plain.everything());
    EXPECT_EQ(retried.optimizer->param_groups()[0].options().get_lr(),
              plain.optimizer->param_groups()[0].options().get_lr());
  }
}

TEST(Retry, PutsBackTensorsThatAreNamed) {
  FakeClock time;
  auto counter = at::zeros({2});
  int calls = 0;
  retry(
      [&] {
        counter.add_(1);
        if (calls++ < 2) run_out_of_memory();
      },
      {.tensors = {counter}, .clock = time.clock()});
  EXPECT_TRUE(same(counter, at::ones({2})));
}

TEST(Retry, RecoversFromAFaultAtEveryAllocation) {
  const MemoryMeter meter;  // its first one wants to stand below the faulty allocator
  FakeClock time;
  auto& allocator = testing::FaultyAllocator::install();
  Net net;
  const auto start = module_state_dict(*net.net);
  std::vector<at::Tensor> copies;
  for (const auto& [name, tensor] : start) copies.push_back(tensor.clone());
  const auto from_start = [&] {
    const at::NoGradGuard no_grad;
    size_t next = 0;
    for (const auto& [name, tensor] : start) tensor.copy_(copies[next++]);
    net.optimizer->state().clear();
    for (const auto& p : net.net->parameters()) p.mutable_grad() = at::ones_like(p);
    at::manual_seed(5);
  };
  const RetryOptions options{
      .model = &*net.net, .optimizers = {net.optimizer.get()}, .clock = time.clock()};
  const auto step = [&] {
    retry(
        [&] {
          net.forward_backward();
          net.optimizer->step();
        },
        options);
  };
  from_start();
  step();
  const auto expected = net.everything();
  from_start();
  allocator.never_fail();
  step();
  const auto allocations = allocator.count();
  ASSERT_GT(allocations, 100);
  for (int64_t i = 0; i < allocations; ++i) {
    from_start();
    allocator.fail_at(i);
    step();
    allocator.never_fail();
    expect_same(net.everything(), expected);
    if (HasFailure()) FAIL() << "fault at allocation " << i << " of " << allocations;
  }
  EXPECT_EQ(static_cast<int64_t>(time.waits.size()), allocations);
}

TEST(Retry, DropsTheFailedGraphBeforeItTriesAgain) {
  const MemoryMeter meter;
  FakeClock time;
  const auto x = at::randn({256, 256}).set_requires_grad(true);
  const auto before = meter.current();
  int calls = 0;
  retry(
      [&] {
        if (calls++ == 1) {
          // The waiting branch holds eight tensors of 256 KiB; all that is left are random states.
          EXPECT_LT((meter.current() - before).count(), 64 * 1024);
          return;
        }
        // Backward takes the newest ops first: it fails while this branch waits in the queue.
        auto waiting = x.cos();
        for (int i = 0; i < 8; ++i) waiting = waiting.sin();
        auto failing = testing::FailsInBackward::apply(x);
        for (int i = 0; i < 8; ++i) failing = failing.sin();
        (waiting.sum() + failing.sum()).backward();
      },
      {.clock = time.clock()});
  EXPECT_EQ(calls, 2);
}

TEST(Retry, FindsAClosureThatIsNotRepeatable) {
  int64_t next = 0;
  const RetryOptions options{.verify = true};
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              retry([&] { return at::scalar_tensor(static_cast<double>(next++)); }, options);
            }),
            "the closure of a retry is not repeatable: tensor 0 of its result differs between two "
            "runs from the same state. Let it own what it uses, fetch data outside of it, and name "
            "what it changes in the options");
  Net net;
  double factor = 1;
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              retry([&] { (net.net->forward(net.x).sum() * factor++).backward(); },
                    {.model = &*net.net, .verify = true});
            }),
            "the closure of a retry is not repeatable: gradient 0 differs between two runs from "
            "the same state. Let it own what it uses, fetch data outside of it, and name what it "
            "changes in the options");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              retry(
                  [&] {
                    if (next++ % 2 == 0) at::rand({1});
                  },
                  options);
            }),
            "the closure of a retry is not repeatable: the state of the random generators differs "
            "between two runs from the same state. Let it own what it uses, fetch data outside of "
            "it, and name what it changes in the options");
}

TEST(Retry, VerifiesARepeatableClosureAndLeavesOneRunsTraces) {
  Net plain, verified;
  at::manual_seed(2);
  const auto expected = plain.forward_backward();
  at::manual_seed(2);
  const auto loss =
      retry([&] { return verified.forward_backward(); }, {.model = &*verified.net, .verify = true});
  EXPECT_TRUE(same(loss, expected));
  expect_same(verified.everything(), plain.everything());
}

/// Ranks of which the others' states are scripted: 0 went well, 1 retries, 2 gave up.
Reducer scripted(std::vector<double> others) {
  auto next = std::make_shared<size_t>(0);
  return {2, 0, [others, next](at::Tensor& status, ReduceOp op) {
            EXPECT_EQ(op, ReduceOp::max);
            status.fill_(std::max(status.item<double>(), others.at((*next)++)));
          }};
}

TEST(Retry, RetriesWhereAnotherRankHasTo) {
  FakeClock time;
  Net plain, retried;
  at::manual_seed(2);
  plain.forward_backward();
  at::manual_seed(2);
  int calls = 0;
  retry(
      [&] {
        ++calls;
        retried.forward_backward();
      },
      {.model = &*retried.net, .reducer = scripted({1, 1, 0}), .clock = time.clock()});
  EXPECT_EQ(calls, 3);
  expect_same(retried.everything(), plain.everything());
}

TEST(Retry, GivesUpWhereAnotherRankDoes) {
  FakeClock time;
  Net net;
  const auto before = net.everything();
  EXPECT_EQ(message_of([&] {
              retry([&] { net.forward_backward(); },
                    {.model = &*net.net, .reducer = scripted({2}), .clock = time.clock()});
            }),
            "this rank's attempt went through, but another rank's failed for good; the error is on "
            "that rank");
  expect_same(net.everything(), before);
  Flaky f{9};
  EXPECT_EQ(message_of<c10::OutOfMemoryError>([&] {
              retry(f, {.reducer = scripted({0, 2}), .clock = time.clock()});
            }),
            "injected (retry gave up after 2 attempts: another rank gave up; attempt 1 at 0 s: "
            "injected; attempt 2 at 0.05 s: the same)");
}

TEST(Retry, SaysWhatItsCopiesTake) {
  Net net;
  const auto generators = retry_bytes({});
  EXPECT_GT(generators, Bytes(1000));
  EXPECT_LT(generators, KiB(8));
  // Running mean and variance of 6 float32, and a count of 8 bytes; no gradients yet.
  EXPECT_EQ(retry_bytes({.model = &*net.net}) - generators, Bytes(2 * 6 * 4 + 8));
  const int64_t parameters = (4 * 6 + 6) + (6 + 6) + (6 * 3 + 3);
  net.forward_backward();
  EXPECT_EQ(retry_bytes({.model = &*net.net}) - generators, Bytes(56 + 4 * parameters));
  net.optimizer->step();
  EXPECT_EQ(retry_bytes({.optimizers = {net.optimizer.get()}}) - generators,
            Bytes(4 * 4 * parameters));
}

TEST(Retry, ChecksItsOptions) {
  const auto text = [](const RetryOptions& options) {
    return message_of<c10::ValueError>([&] { retry([] {}, options); });
  };
  EXPECT_EQ(text({.max_retries = -1}), "max_retries must be 0 or more, but is -1");
  EXPECT_EQ(text({.first_wait = Seconds(-1)}),
            "first_wait must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(text({.factor = 0.5}), "factor must be a finite number, 1 or above, but is 0.5");
  EXPECT_EQ(text({.max_wait = Seconds(-2)}),
            "max_wait must be a finite number, 0 or above, but is -2");
  EXPECT_EQ(text({.deadline = Seconds(-3)}),
            "deadline must be a finite number, 0 or above, but is -3");
  EXPECT_EQ(text({.classify = nullptr}),
            "classify must be callable; its default is classify_error");
  EXPECT_EQ(text({.optimizers = {nullptr}}), "optimizers of a retry must not be null pointers");
  Net net;
  torch::optim::LBFGS lbfgs(net.net->parameters());
  EXPECT_THROW(retry([] {}, {.optimizers = {&lbfgs}}), c10::NotImplementedError);
}

}  // namespace
}  // namespace torchlore
