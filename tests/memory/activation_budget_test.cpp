// ActivationBudget as a scope: options, statistics, misuse, and what may be inside and around it.
#include "torchlore/memory/activation_budget.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>
#include <thread>

#include "budget_support.hpp"
#include "support/message.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same_bytes;
using torch::autograd::grad;

/// Catches LibTorch's warnings.
struct Warnings : c10::WarningHandler {
  Warnings() { c10::WarningUtils::set_warning_handler(this); }
  ~Warnings() override { c10::WarningUtils::set_warning_handler(nullptr); }
  void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }
  std::vector<std::string> texts;
};

struct ActivationBudgetScope : ::testing::Test {
  ActivationBudgetScope() {
    at::set_num_threads(1);
    testing::seed(0);
    x = at::randn({16, 64});
    w = at::randn({64, 64}).requires_grad_();
    expected = grad({model()}, {w})[0];
  }
  at::Tensor model() const { return x.matmul(w).tanh().matmul(w).sigmoid().exp().sum(); }
  void expect_gradient(const at::Tensor& loss) const {
    EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], expected));
  }
  at::Tensor x;
  at::Tensor w;
  at::Tensor expected;
};

TEST_F(ActivationBudgetScope, CountsWhatItDoes) {
  at::Tensor loss;
  std::shared_ptr<const ActivationBudgetStats> stats;
  {
    ActivationBudget budget(KiB(8));
    stats = budget.stats();
    loss = model();
  }
  const int64_t one = 16 * 64 * 4;
  EXPECT_EQ(stats->ops, 6);
  EXPECT_EQ(stats->records, 6);
  EXPECT_EQ(stats->saved_tensors, 6);  // x; tanh; h, w; sigmoid; exp
  EXPECT_EQ(stats->saved_bytes, 3 * one);
  EXPECT_EQ(stats->evictions, 1);
  EXPECT_EQ(stats->peak_pool_bytes, 2 * one);
  EXPECT_EQ(stats->floor_bytes, one);
  EXPECT_EQ(stats->replays, 0);
  expect_gradient(loss);
  EXPECT_EQ(stats->replays, 1);
  EXPECT_GT(stats->replayed_ops, 0);
  EXPECT_EQ(stats->pinned_bytes, 0);
  EXPECT_EQ(stats->touched, 0);
  EXPECT_EQ(stats->verified, 0);
}

TEST_F(ActivationBudgetScope, WhatIsSavedAndThenOverwrittenIsCountedOnce) {
  std::shared_ptr<const ActivationBudgetStats> stats;
  at::Tensor loss;
  {
    ActivationBudget budget(GiB(1));
    stats = budget.stats();
    // As in an LSTM cell: four gates in one storage, each saved when the next is not made yet.
    const auto gates = x.matmul(w).unsafe_chunk(4, 1);
    const auto i = gates[0].sigmoid_();
    const auto f = gates[1].sigmoid_();
    loss = (i * f).sum();
  }
  EXPECT_EQ(stats->saved_bytes, 16 * 64 * 4);
  EXPECT_EQ(stats->peak_pool_bytes, 16 * 64 * 4);
}

TEST_F(ActivationBudgetScope, VerifyFindsAnOpThatIsNoFunctionOfItsArguments) {
  at::Tensor loss;
  std::shared_ptr<const ActivationBudgetStats> stats;
  auto outside = at::ones({64});
  {
    ActivationBudget budget(GiB(1), {.verify = true});
    stats = budget.stats();
    loss = (x.matmul(w) * outside).tanh().sum();
  }
  outside.data_ptr<float>()[0] = 2;  // nobody can see this; a plain run would keep tanh's result
  grad({loss}, {w});
  EXPECT_GT(stats->verified, 0);
  EXPECT_EQ(stats->mismatched, 1);
  EXPECT_EQ(stats->mismatched_ops, std::vector<std::string>{"aten::tanh"});
}

TEST_F(ActivationBudgetScope, BelowTheFloorItWarnsOnceWithTheFloor) {
  Warnings warnings;
  at::Tensor loss;
  {
    ActivationBudget budget(KiB(1));
    loss = model();
  }
  ASSERT_EQ(warnings.texts.size(), 1U);
  EXPECT_EQ(warnings.texts[0],
            "ActivationBudget: the budget of 1 KiB is below the floor of this model; what it keeps "
            "may take up to 4 KiB, of which 0 bytes cannot be computed again");
  expect_gradient(loss);
}

TEST_F(ActivationBudgetScope, BelowTheFloorItThrowsWhereAsked) {
  Warnings warnings;
  const auto text = message_of<c10::ValueError>([&] {
    ActivationBudget budget(KiB(1), {.below_floor = BelowFloor::error});
    model();
  });
  EXPECT_EQ(
      text,
      "ActivationBudget: the budget of 1 KiB is below the floor of this model: 0 bytes cannot "
      "be computed again, and one node of backward needs 4 KiB at once. Give it at least 4 "
      "KiB");
  EXPECT_TRUE(warnings.texts.empty());
  expect_gradient(model());  // nothing is left behind
}

TEST_F(ActivationBudgetScope, ABudgetOfNothingIsNeverTooLow) {
  Warnings warnings;
  at::Tensor loss;
  {
    ActivationBudget budget(KiB(0), {.below_floor = BelowFloor::error});
    loss = model();
  }
  EXPECT_TRUE(warnings.texts.empty());
  expect_gradient(loss);
}

TEST_F(ActivationBudgetScope, RefusesANegativeBudget) {
  EXPECT_EQ(message_of<c10::ValueError>([] { ActivationBudget budget(Bytes(-1)); }),
            "ActivationBudget needs a budget of 0 bytes or more, but got -1");
}

/// Doubles the result of every matrix product.
struct Doubling : OpHandler {
  at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) override {
    return OpHandler::matmul(a, b) * 2;
  }
};
struct Counting : OpHandler {
  bool changes_results() const override { return false; }
  void boxed(OpCall& call) override {
    ++ops;
    call.run();
  }
  int64_t ops = 0;
};

TEST_F(ActivationBudgetScope, RefusesToOpenInsideAModeThatChangesResults) {
  Doubling doubling;
  OpMode mode(doubling);
  EXPECT_EQ(message_of([] { ActivationBudget budget(KiB(0)); }),
            "ActivationBudget was opened inside an OpMode whose handler changes results; what is "
            "dropped could not be computed again as it was. Open the budget first and the mode "
            "inside it, or let the handler's changes_results() return false if it only looks");
}

TEST_F(ActivationBudgetScope, AModeThatOnlyLooksMayBeAround) {
  Counting counting;
  at::Tensor loss;
  {
    OpMode mode(counting);
    ActivationBudget budget(KiB(0));
    loss = model();
  }
  const auto seen = counting.ops;
  EXPECT_GT(seen, 0);
  expect_gradient(loss);
  EXPECT_EQ(counting.ops, seen);  // replays are not shown
}

TEST_F(ActivationBudgetScope, AModeInsideMayChangeResults) {
  Doubling doubling;
  const auto f = [&] {
    OpMode mode(doubling);
    return model();
  };
  const auto doubled = grad({f()}, {w})[0];
  at::Tensor loss;
  {
    ActivationBudget budget(KiB(0));
    loss = f();
  }
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], doubled));
}

TEST_F(ActivationBudgetScope, ASavedTensorScopeInsideTakesItsTensorsFirst) {
  int64_t packed = 0;
  const auto f = [&] {
    const auto first = model();
    SavedTensorScope scope(
        [&packed](const at::Tensor& t) {
          ++packed;
          return t.clone();
        },
        [](const at::Tensor& t) { return t; });
    return first + x.matmul(w).tanh().matmul(w).sum();
  };
  const auto plain = grad({f()}, {w})[0];
  const auto taken = packed;
  at::Tensor loss;
  std::shared_ptr<const ActivationBudgetStats> stats;
  {
    ActivationBudget budget(KiB(0));
    stats = budget.stats();
    loss = f();
  }
  EXPECT_EQ(packed, 2 * taken);
  EXPECT_EQ(stats->saved_tensors, 6);  // the model's own
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], plain));
}

/// Leaves every second tensor to the scope around.
struct EverySecond : SavedTensorHandler {
  struct Copy : PackedTensor {
    explicit Copy(at::Tensor t) : tensor(std::move(t)) {}
    at::Tensor unpack() override { return tensor; }
    at::Tensor tensor;
  };
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override {
    if (count++ % 2 == 0) return nullptr;
    return std::make_unique<Copy>(tensor.clone());
  }
  int64_t count = 0;
};

TEST_F(ActivationBudgetScope, TakesWhatAScopeInsideLeaves) {
  at::Tensor loss;
  {
    ActivationBudget budget(KiB(0));
    SavedTensorScope scope(std::make_shared<EverySecond>());
    loss = model();
  }
  expect_gradient(loss);
  const auto f = [&] {
    return std::get<0>(at::native_layer_norm(x.matmul(w), {64}, {}, {}, 1e-5)).sigmoid().sum();
  };
  const auto plain = grad({f()}, {w})[0];
  {
    ActivationBudget budget(KiB(0));
    SavedTensorScope scope(std::make_shared<EverySecond>());
    loss = f();
  }
  EXPECT_TRUE(same_bytes(grad({loss}, {w})[0], plain));
}

TEST_F(ActivationBudgetScope, TheInnermostOfNestedBudgetsRecords) {
  at::Tensor h;
  at::Tensor loss;
  std::shared_ptr<const ActivationBudgetStats> outer_stats;
  std::shared_ptr<const ActivationBudgetStats> inner_stats;
  {
    ActivationBudget outer(KiB(0));
    outer_stats = outer.stats();
    h = x.matmul(w).tanh();
    {
      ActivationBudget inner(KiB(0));
      inner_stats = inner.stats();
      h = h.matmul(w).sigmoid();
    }
    loss = h.exp().sum();
  }
  EXPECT_EQ(outer_stats->ops, 4);
  EXPECT_EQ(inner_stats->ops, 2);
  expect_gradient(loss);
}

TEST_F(ActivationBudgetScope, OneInsideAnotherGraphsLifeTime) {
  // The graph, and all that a budget keeps for it, dies under the lock of another one.
  at::Tensor inner;
  {
    ActivationBudget budget(GiB(1));
    inner = model();
  }
  auto* raw = new at::Tensor(inner);
  inner = at::Tensor();
  at::Tensor loss;
  {
    ActivationBudget budget(KiB(0));
    auto blob = at::from_blob(x.data_ptr(), x.sizes(), [raw](void*) { delete raw; });
    loss = blob.matmul(w).tanh().matmul(w).sigmoid().exp().sum();
  }
  expect_gradient(loss);
  loss = at::Tensor();
}

TEST_F(ActivationBudgetScope, DestroyedOutOfOrderItWarnsAndRecordsNoMore) {
  Warnings warnings;
  auto outer = std::make_unique<ActivationBudget>(GiB(1));
  auto inner = std::make_unique<ActivationBudget>(GiB(1));
  outer.reset();
  ASSERT_EQ(warnings.texts.size(), 1U);
  EXPECT_EQ(warnings.texts[0],
            "an ActivationBudget was destroyed before a scope inside it, or on another thread than "
            "its own; it records no more. End scopes on their thread, innermost first");
  const auto loss = model();
  EXPECT_EQ(inner->stats()->ops, 6);
  inner.reset();
  EXPECT_EQ(warnings.texts.size(), 1U);
  expect_gradient(loss);
  expect_gradient(model());
}

TEST_F(ActivationBudgetScope, DestroyedOnAnotherThreadItWarnsAndRecordsNoMore) {
  std::thread([&] {
    Warnings warnings;
    auto budget = std::make_unique<ActivationBudget>(GiB(1));
    const auto stats = budget->stats();
    const auto before = model();
    std::vector<std::string> texts;
    std::thread([&] {
      Warnings there;
      budget.reset();
      texts = there.texts;
    }).join();
    ASSERT_EQ(texts.size(), 1U);
    const auto after = model();
    EXPECT_EQ(stats->ops, 6);
    expect_gradient(before);
    expect_gradient(after);
  }).join();
}

TEST_F(ActivationBudgetScope, ModesCarriedToAnotherThreadAreNotRecordedThere) {
  at::Tensor loss;
  std::shared_ptr<const ActivationBudgetStats> stats;
  {
    ActivationBudget budget(KiB(0));
    stats = budget.stats();
    const auto modes = OpModeState::capture();
    std::thread([&] {
      const OpModeGuard guard(modes);
      loss = model();
    }).join();
    loss = loss * 1;
  }
  EXPECT_EQ(stats->ops, 1);
  expect_gradient(loss);
}

}  // namespace
}  // namespace torchlore
