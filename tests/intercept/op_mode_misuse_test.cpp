// Modes and guards that are not ended innermost first on their own thread: each is told of, and
// nothing is called that is gone. Sanitizers watch.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "support/handlers.hpp"
#include "support/warnings.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using testing::CollectWarnings;
using testing::CountMatmuls;
using testing::Doubling;
using testing::multiply;
using Texts = std::vector<std::string>;

const std::string kBeforeInner =
    "an OpMode was destroyed before a mode inside it; both have ended. End modes innermost first";
const std::string kOtherThread =
    "an OpMode was destroyed on another thread than its own; its handler is no longer called. End "
    "modes on their own thread";
const std::string kHidden =
    "an OpMode was destroyed while its handler ran, or inside an OpModeGuard; its handler is no "
    "longer called. End modes outside both";
const std::string kGuardBeforeInner =
    "an OpModeGuard was destroyed before a mode inside it; both have ended. End modes innermost "
    "first";
const std::string kGuardElsewhere =
    "an OpModeGuard was destroyed on another thread than its own, or while a handler ran; its "
    "thread stays in the guard's modes. End guards on their own thread, outside handlers";

/// Handlers whose use after their end the address sanitizer would see.
template <typename Handler>
struct Scoped {
  std::unique_ptr<Handler> handler = std::make_unique<Handler>();
  std::unique_ptr<OpMode> mode = std::make_unique<OpMode>(*handler);
  void end() {
    mode.reset();
    handler.reset();
  }
};

TEST(OpModeMisuse, TheOuterModeEndsFirst) {
  const CollectWarnings warnings;
  CountMatmuls around;
  const OpMode outermost(around);
  Scoped<CountMatmuls> outer;
  Scoped<CountMatmuls> middle;
  Scoped<CountMatmuls> inner;
  outer.end();
  EXPECT_EQ(warnings.texts, Texts{kBeforeInner});
  multiply();
  EXPECT_EQ(middle.handler->count, 0);
  EXPECT_EQ(inner.handler->count, 0);
  EXPECT_EQ(around.count, 1);
  middle.end();
  inner.end();
  EXPECT_EQ(warnings.texts.size(), 1U);
  multiply();
  EXPECT_EQ(around.count, 2);
}

TEST(OpModeMisuse, AModeEndsOnAnotherThread) {
  const CollectWarnings warnings;
  CountMatmuls around;
  {
    const OpMode outer(around);
    Scoped<CountMatmuls> inner;
    Texts elsewhere;
    std::thread([&] {
      const CollectWarnings there;
      inner.end();
      elsewhere = there.texts;
    }).join();
    EXPECT_EQ(elsewhere, Texts{kOtherThread});
    multiply();
    EXPECT_EQ(around.count, 1);
    {
      CountMatmuls last;
      const OpMode mode(last);
      multiply();
      EXPECT_EQ(last.count, 1);
    }
    EXPECT_EQ(around.count, 2);
  }
  EXPECT_TRUE(OpModeState::capture().empty());
  EXPECT_EQ(warnings.texts, Texts{});
}

TEST(OpModeMisuse, AModeEndsOnAnotherThreadThatIsInACopyOfIt) {
  Scoped<CountMatmuls> scoped;
  const auto modes = OpModeState::capture();
  Texts elsewhere;
  std::thread([&] {
    const CollectWarnings there;
    const OpModeGuard guard(modes);
    scoped.end();
    multiply();
    elsewhere = there.texts;
  }).join();
  EXPECT_EQ(elsewhere, Texts{kOtherThread});
  multiply();
}

TEST(OpModeMisuse, AHandlerEndsItsOwnMode) {
  struct Suicidal : CountMatmuls {
    at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                     const at::Scalar& beta, const at::Scalar& alpha) override {
      mode->reset();
      return CountMatmuls::addmm(bias, a, b, beta, alpha);
    }
    std::unique_ptr<OpMode>* mode = nullptr;
  };
  const CollectWarnings warnings;
  CountMatmuls around;
  {
    const OpMode outer(around);
    const auto handler = std::make_shared<Suicidal>();
    auto mode = std::make_unique<OpMode>(handler);
    handler->mode = &mode;
    multiply();
    multiply();
    EXPECT_EQ(warnings.texts, Texts{kHidden});
    EXPECT_EQ(handler->count, 1);
    EXPECT_EQ(around.count, 2);
  }
  EXPECT_TRUE(OpModeState::capture().empty());
  EXPECT_EQ(warnings.texts.size(), 1U);
}

TEST(OpModeMisuse, AHandlerEndsTheModeAroundItsOwn) {
  struct Parricide : CountMatmuls {
    at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                     const at::Scalar& beta, const at::Scalar& alpha) override {
      mode->reset();
      return CountMatmuls::addmm(bias, a, b, beta, alpha);
    }
    std::unique_ptr<OpMode>* mode = nullptr;
  };
  CountMatmuls around;
  const auto outer = std::make_shared<CountMatmuls>();
  auto outer_mode = std::make_unique<OpMode>(outer);
  {
    Parricide handler;
    const OpMode inner(handler);
    handler.mode = &outer_mode;
    multiply();
    multiply();
    EXPECT_EQ(handler.count, 2);
  }
  EXPECT_EQ(outer->count, 0);
  EXPECT_TRUE(OpModeState::capture().empty());
}

TEST(OpModeMisuse, AHandlerLeavesAModeOpen) {
  struct Leaving : CountMatmuls {
    at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                     const at::Scalar& beta, const at::Scalar& alpha) override {
      left = std::make_unique<OpMode>(inside);
      return CountMatmuls::addmm(bias, a, b, beta, alpha);
    }
    CountMatmuls inside;
    std::unique_ptr<OpMode> left;
  };
  const CollectWarnings warnings;
  {
    Leaving handler;
    const OpMode mode(handler);
    multiply();
    EXPECT_EQ(handler.inside.count, 1);
    handler.left.reset();
    EXPECT_EQ(warnings.texts, Texts{kHidden});
    EXPECT_FALSE(OpModeState::capture().empty());
  }
  EXPECT_TRUE(OpModeState::capture().empty());
}

TEST(OpModeMisuse, AModeEndsInsideAGuard) {
  const CollectWarnings warnings;
  CountMatmuls around;
  {
    const OpMode outer(around);
    Scoped<CountMatmuls> inner;
    {
      const OpModeGuard guard(OpModeState::capture());
      inner.end();
      EXPECT_EQ(warnings.texts, Texts{kHidden});
      multiply();
      EXPECT_EQ(around.count, 1);
    }
    multiply();
    EXPECT_EQ(around.count, 2);
  }
  EXPECT_EQ(warnings.texts.size(), 1U);
  EXPECT_TRUE(OpModeState::capture().empty());
}

TEST(OpModeMisuse, AGuardEndsBeforeAModeInsideIt) {
  for (const bool empty : {true, false}) {
    const CollectWarnings warnings;
    CountMatmuls around;
    {
      const OpMode outer(around);
      auto guard = std::make_unique<OpModeGuard>(empty ? OpModeState() : OpModeState::capture());
      Scoped<CountMatmuls> inner;
      guard.reset();
      EXPECT_EQ(warnings.texts, Texts{kGuardBeforeInner});
      multiply();
      EXPECT_EQ(inner.handler->count, 0);
      EXPECT_EQ(around.count, 1);
      inner.end();
    }
    EXPECT_EQ(warnings.texts.size(), 1U);
    EXPECT_TRUE(OpModeState::capture().empty());
  }
}

TEST(OpModeMisuse, AGuardEndsOnAnotherThread) {
  CountMatmuls handler;
  auto mode = std::make_unique<OpMode>(handler);
  auto modes = OpModeState::capture();
  Texts elsewhere;
  std::thread([&] {
    auto guard = std::make_unique<OpModeGuard>(modes);
    std::thread([&] {
      const CollectWarnings there;
      guard.reset();
      elsewhere = there.texts;
    }).join();
    multiply();  // still in the guard's modes
  }).join();
  EXPECT_EQ(elsewhere, Texts{kGuardElsewhere});
  EXPECT_EQ(handler.count, 1);
  multiply();
  EXPECT_EQ(handler.count, 2);
}

TEST(OpModeMisuse, AHandlerEndsAGuardAroundIt) {
  struct Ending : CountMatmuls {
    at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                     const at::Scalar& beta, const at::Scalar& alpha) override {
      guard->reset();
      return CountMatmuls::addmm(bias, a, b, beta, alpha);
    }
    std::unique_ptr<OpModeGuard>* guard = nullptr;
  };
  const auto handler = std::make_shared<Ending>();
  std::thread([&] {
    const CollectWarnings warnings;
    OpModeState state;
    {
      const OpMode mode(handler);
      state = OpModeState::capture();
    }
    auto guard = std::make_unique<OpModeGuard>(state);
    handler->guard = &guard;
    state = {};
    multiply();
    EXPECT_EQ(warnings.texts, Texts{kGuardElsewhere});
    multiply();
  }).join();
  EXPECT_EQ(handler->count, 2);
}

}  // namespace
}  // namespace torchlore
