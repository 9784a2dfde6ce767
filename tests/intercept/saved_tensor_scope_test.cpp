#include "torchlore/intercept/saved_tensor_scope.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <stdexcept>
#include <thread>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "support/warnings.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using testing::message_of;

at::Tensor leaf() { return at::randn({3, 3}).set_requires_grad(true); }

TEST(SavedTensorScope, PacksAndUnpacksWhatAutogradSaves) {
  const auto w = leaf();
  (w * w).exp().sum().backward();
  const auto plain = w.grad().clone();
  w.mutable_grad() = at::Tensor();
  int64_t packed = 0;
  int64_t unpacked = 0;
  at::Tensor loss;
  {
    SavedTensorScope scope(
        [&](const at::Tensor& t) {
          ++packed;
          return t.to(at::kDouble);
        },
        [&](const at::Tensor& t) {
          ++unpacked;
          return t.to(at::kFloat);
        });
    loss = (w * w).exp().sum();
  }
  EXPECT_EQ(packed, 3);
  EXPECT_EQ(unpacked, 0);
  loss.backward();
  EXPECT_EQ(unpacked, 3);
  EXPECT_TRUE(w.grad().equal(plain));
}

/// Leaves every second tensor alone.
struct EverySecond : SavedTensorHandler {
  int64_t asked = 0;
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override {
    if (++asked % 2 == 0) return nullptr;
    return SavedTensorScope::save(tensor);
  }
};

TEST(SavedTensorScope, ScopesNestAndPassOn) {
  const auto w = leaf();
  const auto outer = std::make_shared<EverySecond>();
  const auto inner = std::make_shared<EverySecond>();
  at::Tensor loss;
  {
    SavedTensorScope first(outer);
    SavedTensorScope second(inner);
    loss = (w * w).exp().sum();
  }
  EXPECT_EQ(inner->asked, 3);
  EXPECT_EQ(outer->asked, 3);
  loss.backward();
  EXPECT_TRUE(w.grad().allclose(2 * w.detach() * (w.detach() * w.detach()).exp()));
}

TEST(SavedTensorScope, ATensorLeftAloneIsStillCheckedForChanges) {
  const auto w = leaf();
  at::Tensor loss;
  at::Tensor y;
  {
    SavedTensorScope scope(std::make_shared<EverySecond>());
    y = w.sigmoid();
    loss = y.sum();
  }
  y.detach().zero_();
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "one of the variables needed for gradient computation has been modified by an inplace "
            "operation: [CPUFloatType [3, 3]] is at version 1; expected version 0 instead. Change "
            "it out of place, or after backward");
}

TEST(SavedTensorScope, NothingLeaksWhenTheGraphIsDropped) {
  const auto w = leaf();
  at::Tensor y;
  {
    SavedTensorScope scope(std::make_shared<EverySecond>());
    y = w.exp();
  }
  const c10::weak_intrusive_ptr<c10::StorageImpl> weak = y.storage().getWeakStorageImpl();
  y = at::Tensor();
  EXPECT_TRUE(weak.expired());
}

/// Counts what it is asked, and keeps every tensor.
struct Keeping : SavedTensorHandler {
  int64_t packed = 0;
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override {
    ++packed;
    return SavedTensorScope::save(tensor);
  }
};

TEST(SavedTensorScope, SeesNothingOutside) {
  const auto w = leaf();
  const auto handler = std::make_shared<Keeping>();
  { SavedTensorScope scope(handler); }
  w.exp();
  EXPECT_EQ(handler->packed, 0);
}

TEST(SavedTensorScope, AHandlerThatSavesThroughTheScopeAroundStacksOnIt) {
  const auto w = leaf();
  const auto outer = std::make_shared<Keeping>();
  const auto inner = std::make_shared<Keeping>();
  at::Tensor loss;
  {
    SavedTensorScope first(outer);
    SavedTensorScope second(inner);
    loss = w.exp().sum();
  }
  EXPECT_EQ(inner->packed, 1);
  EXPECT_EQ(outer->packed, 1);
  loss.backward();
  EXPECT_TRUE(testing::same(w.grad(), w.detach().exp()));
}

TEST(SavedTensorScope, HandlersRunWithoutGradientsAndHiddenFromModes) {
  struct Trace : OpHandler {
    std::vector<std::string> names;
    void boxed(OpCall& call) override {
      names.push_back(call.name());
      call.run();
    }
  };
  const auto w = leaf();
  Trace trace;
  OpMode mode(trace);
  at::Tensor loss;
  {
    SavedTensorScope scope(
        [](const at::Tensor& t) {
          EXPECT_FALSE(at::GradMode::is_enabled());
          return t * 1;
        },
        [](const at::Tensor& t) {
          EXPECT_FALSE(at::GradMode::is_enabled());
          return t * 1;
        });
    loss = w.exp();
  }
  EXPECT_EQ(trace.names, std::vector<std::string>{"aten::exp"});
  trace.names.clear();
  loss.backward(at::ones({3, 3}));
  for (const auto& name : trace.names) EXPECT_NE(name, "aten::mul.Scalar");
}

TEST(SavedTensorScope, BelongsToItsThread) {
  const auto w = leaf();
  const auto handler = std::make_shared<Keeping>();
  SavedTensorScope scope(handler);
  std::thread([&] { w.exp(); }).join();
  EXPECT_EQ(handler->packed, 0);
}

TEST(SavedTensorScope, BackwardMayRunOnAnotherThread) {
  const auto w = leaf();
  at::Tensor loss;
  {
    SavedTensorScope scope(std::make_shared<Keeping>());
    loss = w.exp().sum();
  }
  std::thread([&] { loss.backward(); }).join();
  EXPECT_TRUE(testing::same(w.grad(), w.detach().exp()));
}

TEST(SavedTensorScope, SecondDerivativesAreExact) {
  const auto w = leaf();
  at::Tensor y;
  {
    SavedTensorScope scope([](const at::Tensor& t) { return t; },
                           [](const at::Tensor& t) { return t; });
    y = (w * w * w).sum();
  }
  const auto first = torch::autograd::grad({y}, {w}, {}, true, /*create_graph=*/true)[0];
  const auto second = torch::autograd::grad({first.sum()}, {w})[0];
  EXPECT_TRUE(testing::close(second, w.detach() * 6));
}

TEST(SavedTensorScope, WhatAHandlerThrowsReachesTheCaller) {
  const auto w = leaf();
  {
    SavedTensorScope scope([](const at::Tensor&) -> int { throw std::runtime_error("full"); },
                           [](int) { return at::Tensor(); });
    EXPECT_THROW(w.exp(), std::runtime_error);
  }
  at::Tensor loss;
  {
    SavedTensorScope scope(
        [](const at::Tensor& t) { return t; },
        [](const at::Tensor&) -> at::Tensor { throw std::runtime_error("gone"); });
    loss = w.exp().sum();
  }
  EXPECT_THROW(loss.backward(), std::runtime_error);
  w.exp().sum().backward();
  EXPECT_TRUE(testing::same(w.grad(), w.detach().exp()));
}

TEST(SavedTensorScope, AHandlerThatChangesTheTensorIsAnError) {
  const auto w = leaf();
  SavedTensorScope scope([](const at::Tensor& t) { return t.zero_(); },
                         [](const at::Tensor& t) { return t; });
  EXPECT_THROW(w.exp(), c10::Error);
}

TEST(SavedTensorScope, DestroyedOutOfOrderItWarnsAndEndsTheScopesInside) {
  const auto w = leaf();
  const auto handler = std::make_shared<Keeping>();
  auto outer = std::make_unique<SavedTensorScope>(std::make_shared<Keeping>());
  auto inner = std::make_unique<SavedTensorScope>(handler);
  testing::CollectWarnings warnings;
  outer.reset();
  w.exp();
  inner.reset();
  w.exp();
  EXPECT_EQ(handler->packed, 0);
  EXPECT_EQ(warnings.texts,
            (std::vector<std::string>{
                "a SavedTensorScope was destroyed before a scope inside it; both have ended. End "
                "scopes innermost first",
                "a SavedTensorScope was destroyed on another thread than its own, or after the "
                "scope around it; its handler is no longer asked. End scopes on their thread, "
                "innermost first"}));
}

TEST(SavedTensorScope, DestroyedOnAnotherThreadItAsksItsHandlerNoMore) {
  const auto w = leaf();
  const auto handler = std::make_shared<Keeping>();
  std::thread([&] {
    auto scope = std::make_unique<SavedTensorScope>(handler);
    std::thread([&] {
      testing::CollectWarnings warnings;
      scope.reset();
      EXPECT_EQ(warnings.texts.size(), 1);
    }).join();
    w.exp();
  }).join();
  EXPECT_EQ(handler->packed, 0);
}

TEST(SavedTensorScope, ANullHandlerIsRefused) {
  EXPECT_EQ(message_of([] { SavedTensorScope scope(std::shared_ptr<SavedTensorHandler>{}); }),
            "SavedTensorScope was given a null handler");
}

}  // namespace
}  // namespace torchlore
