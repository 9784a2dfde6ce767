#include "torchlore/intercept/op_mode.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/handlers.hpp"
#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using testing::CountMatmuls;
using testing::Doubling;
using testing::message_of;
using testing::multiply;
using testing::Names;
using testing::same;
using testing::Trace;

TEST(OpMode, SeesTheOpsOfAnUnmodifiedModel) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  const auto plain = layer(x);
  CountMatmuls handler;
  at::Tensor y;
  {
    const OpMode mode(handler);
    y = layer(x);
  }
  layer(x);
  EXPECT_EQ(handler.count, 1);
  EXPECT_TRUE(same(y, plain));
}

TEST(OpMode, ReplacesAnOpAndBackwardFlowsThrough) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  layer(x).sum().backward();
  const auto plain = layer->weight.grad().clone();
  layer->zero_grad();
  Doubling handler;
  at::Tensor loss;
  {
    const OpMode mode(handler);
    loss = layer(x).sum();
  }
  loss.backward();
  EXPECT_TRUE(same(layer->weight.grad(), plain * 2));
}

TEST(OpMode, ABoxedHandlerMayChangeArgumentsAndResults) {
  struct ShiftAndNegate : OpHandler {
    void boxed(OpCall& call) override {
      if (call.name() != "aten::exp") return call.run();
      call.stack().back() = call.stack().back().toTensor() + 1;
      call.run();
      call.stack().back() = -call.stack().back().toTensor();
    }
  };
  const auto x = at::randn({3}).requires_grad_(true);
  ShiftAndNegate handler;
  at::Tensor y;
  {
    const OpMode mode(handler);
    y = x.exp();
  }
  const auto expected = -(x + 1).exp();
  EXPECT_TRUE(same(y, expected));
  const auto gradient = torch::autograd::grad({y.sum()}, {x})[0];
  EXPECT_TRUE(same(gradient, torch::autograd::grad({expected.sum()}, {x})[0]));
}

// --- Order ---------------------------------------------------------------------------------------

TEST(OpMode, TheInnermostSeesAnOpFirstAndTheNextOneWhatItCalls) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  Doubling doubling;
  Trace outer;
  Trace inner;
  CountMatmuls count;
  {
    const OpMode first(count);
    const OpMode second(outer);
    const OpMode third(doubling);
    const OpMode fourth(inner);
    layer(x);
  }
  EXPECT_EQ(inner.names, (Names{"aten::t", "aten::addmm"}));
  EXPECT_EQ(outer.names, (Names{"aten::t", "aten::addmm", "aten::mul.Scalar"}));
  EXPECT_EQ(count.count, 1);
}

using Log = std::vector<int>;

struct TypedLogger : OpHandler {
  TypedLogger(Log& to, int as) : log(to), number(as) {}
  at::Tensor mm(const at::Tensor& a, const at::Tensor& b) override {
    log.push_back(number);
    return OpHandler::mm(a, b);
  }
  Log& log;
  int number;
};

struct BoxedLogger : OpHandler {
  BoxedLogger(Log& to, int as) : log(to), number(as) {}
  void boxed(OpCall& call) override {
    log.push_back(number);
    call.run();
  }
  Log& log;
  int number;
};

/// Handles mm by a function of its own, and all others boxed.
struct MixedLogger : BoxedLogger {
  using BoxedLogger::BoxedLogger;
  at::Tensor mm(const at::Tensor& a, const at::Tensor& b) override {
    log.push_back(number);
    return OpHandler::mm(a, b);
  }
};

/// Handles another op only.
struct Bystander : OpHandler {
  Bystander(Log& to, int as) : log(to), number(as) {}
  at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) override {
    log.push_back(number);
    return OpHandler::bmm(a, b);
  }
  Log& log;
  int number;
};

TEST(OpMode, EveryKindInEveryKindSeesEachOpOnceInOrder) {
  const auto a = at::randn({2, 3}), b = at::randn({3, 2});
  const auto expected = at::mm(a, b);
  // Runs `inside` within a mode of kind k, numbered `number`.
  Log log;
  const auto within = [&](int kind, int number, const std::function<void()>& inside) {
    TypedLogger typed(log, number);
    BoxedLogger boxed(log, number);
    MixedLogger mixed(log, number);
    Bystander bystander(log, number);
    if (kind == 0) {
      const OpMode mode(typed);
      inside();
    } else if (kind == 1) {
      const OpMode mode(boxed);
      inside();
    } else if (kind == 2) {
      const OpMode mode(mixed);
      inside();
    } else {
      const OpMode mode(bystander);
      inside();
    }
  };
  for (int kinds = 0; kinds < 4 * 4 * 4; ++kinds) {
    SCOPED_TRACE(kinds);
    const int outer = kinds % 4, middle = kinds / 4 % 4, inner = kinds / 16;
    Log seen;
    if (inner != 3) seen.push_back(2);
    if (middle != 3) seen.push_back(1);
    if (outer != 3) seen.push_back(0);
    log.clear();
    at::Tensor y;
    within(outer, 0,
           [&] { within(middle, 1, [&] { within(inner, 2, [&] { y = at::mm(a, b); }); }); });
    EXPECT_EQ(log, seen);
    EXPECT_TRUE(same(y, expected));
  }
}

TEST(OpMode, AnOpWithoutOverrideShowsTheOpsThatItIsMadeOf) {
  CountMatmuls handler;
  const OpMode mode(handler);
  at::linear(at::ones({2, 3}), at::ones({4, 3}), at::ones({4}));
  EXPECT_EQ(handler.count, 1);
}

// --- Handlers that call ops, and open modes --------------------------------------------------------

TEST(OpMode, AHandlerDoesNotSeeWhatItCallsItself) {
  struct Recursive : OpHandler {
    at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                     const at::Scalar& beta, const at::Scalar& alpha) override {
      ++count;
      multiply();
      return at::addmm(bias, a, b, beta, alpha);
    }
    int count = 0;
  };
  Recursive handler;
  const OpMode mode(handler);
  multiply();
  EXPECT_EQ(handler.count, 1);
}

TEST(OpMode, AHandlerMayOpenAndCloseModes) {
  struct Nesting : OpHandler {
    explicit Nesting(CountMatmuls& to) : other(to) {}
    at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                     const at::Scalar& beta, const at::Scalar& alpha) override {
      ++count;
      const OpMode again(*this);  // its own handler, in a mode inside
      const OpMode inside(other);
      if (count > 2) return at::zeros({1, 1});
      return at::addmm(bias, a, b, beta, alpha);
    }
    CountMatmuls& other;
    int count = 0;
  };
  CountMatmuls outer;
  CountMatmuls other;
  Nesting handler(other);
  {
    const OpMode first(outer);
    const OpMode mode(handler);
    EXPECT_EQ(multiply().item<float>(), 0);
    EXPECT_EQ(handler.count, 3);
    EXPECT_EQ(other.count, 2);
    EXPECT_EQ(outer.count, 0);
  }
  EXPECT_TRUE(OpModeState::capture().empty());
}

TEST(OpMode, OneHandlerMayServeSeveralModes) {
  CountMatmuls handler;
  const OpMode outer(handler);
  const OpMode inner(handler);
  multiply();
  EXPECT_EQ(handler.count, 2);
}

// --- Parts of an op --------------------------------------------------------------------------------

TEST(OpCall, FollowsACompositeOpIntoItsParts) {
  const auto x = at::randn({4, 3});
  const auto w = at::randn({3, 2});
  Trace whole;
  Trace parts(true);
  at::Tensor y;
  at::Tensor z;
  {
    const OpMode mode(whole);
    y = at::matmul(x, w);
  }
  {
    const OpMode mode(parts);
    z = at::matmul(x, w);
  }
  EXPECT_TRUE(same(z, y));
  EXPECT_EQ(whole.names, Names{"aten::matmul"});
  EXPECT_EQ(parts.names, Names{"aten::mm"});
}

TEST(OpCall, RunsAnOpWithoutPartsWhole) {
  struct AllParts : OpHandler {
    void boxed(OpCall& call) override {
      names.push_back(call.name());
      call.run_parts();
    }
    Names names;
  };
  const auto x = at::randn({4, 3}), w = at::randn({3, 2});
  AllParts handler;
  const OpMode mode(handler);
  {
    const Autocast amp(at::kCPU);
    at::mm(x, w);
  }
  EXPECT_EQ(handler.names, Names{"aten::mm"});
}

TEST(OpCall, UnderAutocastTheCastsAndTheOpItselfAreParts) {
  Trace parts(true);
  const auto x = at::randn({4, 3}), w = at::randn({3, 2});
  at::Tensor y;
  {
    const Autocast amp(at::kCPU);
    const OpMode mode(parts);
    y = at::matmul(x, w);
  }
  EXPECT_EQ(parts.names, (Names{"aten::_to_copy", "aten::_to_copy", "aten::mm"}));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
}

TEST(OpCall, PassesAnOpOnToAutocastWithTheModeOn) {
  struct PassOn : OpHandler {
    void boxed(OpCall& call) override {
      names.push_back(call.name());
      if (call.name() != "aten::mm" || names.size() > 1) return call.run();
      call.pass_on();
    }
    Names names;
  };
  const auto x = at::randn({4, 3}), w = at::randn({3, 2});
  PassOn handler;
  at::Tensor y;
  {
    const Autocast amp(at::kCPU);
    const OpMode mode(handler);
    y = at::mm(x, w);
  }
  EXPECT_EQ(handler.names, (Names{"aten::mm", "aten::to.dtype", "aten::to.dtype", "aten::mm"}));
  EXPECT_TRUE(same(y, at::mm(x.to(at::kBFloat16), w.to(at::kBFloat16))));
}

TEST(OpCall, KnowsTheOp) {
  struct Look : OpHandler {
    void boxed(OpCall& call) override {
      name = call.name();
      composite = call.composite();
      arguments = call.stack().size();
      call.run();
      results = call.stack().size();
    }
    std::string name;
    bool composite = true;
    size_t arguments = 0, results = 0;
  };
  Look look;
  const OpMode mode(look);
  at::topk(at::ones({3}), 2);
  EXPECT_EQ(look.name, "aten::topk");
  EXPECT_FALSE(look.composite);
  EXPECT_EQ(look.arguments, 5U);
  EXPECT_EQ(look.results, 2U);
  at::softmax(at::ones({3}), 0);
  EXPECT_EQ(look.name, "aten::softmax.int");
  EXPECT_TRUE(look.composite);
}

// --- Together with LibTorch's own modes --------------------------------------------------------------

TEST(OpMode, WorksUnderNoGradAndInferenceMode) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  CountMatmuls handler;
  const OpMode mode(handler);
  {
    const at::NoGradGuard no_grad;
    EXPECT_FALSE(layer(x).requires_grad());
  }
  EXPECT_EQ(handler.count, 1);
  {
    const c10::InferenceMode inference;
    EXPECT_TRUE(layer(x).is_inference());
  }
  EXPECT_EQ(handler.count, 2);
  layer(x);
  EXPECT_EQ(handler.count, 3);
}

TEST(OpMode, WorksInsideInferenceMode) {
  const c10::InferenceMode inference;
  CountMatmuls typed;
  Trace boxed;
  {
    const OpMode first(typed);
    const OpMode second(boxed);
    EXPECT_EQ(multiply().item<float>(), 2);
  }
  EXPECT_EQ(typed.count, 1);
  EXPECT_EQ(boxed.names,
            (Names{"aten::zeros", "aten::ones", "aten::ones", "aten::addmm", "aten::item"}));
}

TEST(OpMode, SeesArgumentsAboveAutocastWhichCastsAndCachesAsEver) {
  struct KeepDtypes : OpHandler {
    at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                     const at::Scalar& beta, const at::Scalar& alpha) override {
      dtypes.push_back(b.scalar_type());
      return OpHandler::addmm(bias, a, b, beta, alpha);
    }
    std::vector<at::ScalarType> dtypes;
  };
  const auto w = at::randn({3, 2}).requires_grad_(true), bias = at::randn({2}),
             x = at::randn({4, 3});
  const auto step = [&] {
    const Autocast amp(at::kCPU);
    const auto y = at::addmm(bias, x, w) + at::addmm(bias, x * 2, w);
    return std::pair(y, torch::autograd::grad({y.sum()}, {w})[0]);
  };
  const auto [plain, plain_gradient] = step();
  KeepDtypes typed;
  {
    const OpMode mode(typed);
    const auto [y, gradient] = step();
    EXPECT_TRUE(same(y, plain));
    EXPECT_TRUE(same(gradient, plain_gradient));
  }
  EXPECT_EQ(typed.dtypes, (std::vector{at::kFloat, at::kFloat}));
  Trace parts(true);
  {
    const OpMode mode(parts);
    const Autocast amp(at::kCPU);
    at::matmul(x, w);
    at::matmul(x * 2, w);
  }
  // The parameter is cast once, each input for itself.
  EXPECT_EQ(parts.names, (Names{"aten::_to_copy", "aten::_to_copy", "aten::mm", "aten::mul.Scalar",
                                "aten::_to_copy", "aten::mm"}));
}

TEST(OpMode, OnlyBoxedSeesInPlaceAndOutVariants) {
  const auto bias = at::randn({2}), a = at::randn({4, 3}), b = at::randn({3, 2});
  const auto expected = at::addmm(bias, a, b);
  CountMatmuls typed;
  Trace boxed;
  const OpMode first(typed);
  const OpMode second(boxed);
  at::Tensor out = at::empty({4, 2});
  boxed.names.clear();
  EXPECT_EQ(&at::addmm_out(out, bias, a, b), &out);
  EXPECT_TRUE(same(out, expected));
  auto sum = bias.expand({4, 2}).clone();
  boxed.names.clear();
  EXPECT_EQ(&sum.addmm_(a, b), &sum);
  EXPECT_EQ(boxed.names, Names{"aten::addmm_"});
  EXPECT_TRUE(same(sum, expected));
  EXPECT_EQ(typed.count, 0);
}

// --- Backward ----------------------------------------------------------------------------------------

TEST(OpMode, SeesBackwardInsideItsScopeOnly) {
  const auto x = at::randn({4, 3}), w = at::randn({3, 2}).requires_grad_(true);
  Trace handler;
  at::Tensor loss;
  {
    const OpMode mode(handler);
    loss = at::mm(x, w).sum();
    handler.names.clear();
    torch::autograd::grad({loss}, {w}, {}, /*retain_graph=*/true);
  }
  EXPECT_EQ(std::count(handler.names.begin(), handler.names.end(), "aten::mm"), 1);
  handler.names.clear();
  loss.backward();
  EXPECT_EQ(handler.names, Names{});
}

TEST(OpMode, MayReplaceTheOpsOfBackward) {
  struct Zero : OpHandler {
    at::Tensor mm(const at::Tensor& a, const at::Tensor& b) override {
      return at::zeros({a.size(0), b.size(1)}, a.options());
    }
  };
  const auto x = at::randn({4, 3}), w = at::randn({3, 2}).requires_grad_(true);
  const auto loss = at::mm(x, w).sum();
  Zero handler;
  {
    const OpMode mode(handler);
    loss.backward();
  }
  EXPECT_TRUE(same(w.grad(), at::zeros({3, 2})));
}

TEST(OpMode, SeesDoubleBackward) {
  const auto x = at::randn({3}).requires_grad_(true);
  const auto plain = [&] {
    const auto first = torch::autograd::grad({x.exp().sum()}, {x}, {}, true, true)[0];
    return torch::autograd::grad({first.sum()}, {x})[0];
  };
  const auto expected = plain();
  Trace handler;
  const OpMode mode(handler);
  EXPECT_TRUE(same(plain(), expected));
}

// --- Handlers that throw -------------------------------------------------------------------------------

struct ThrowTyped : OpHandler {
  at::Tensor mm(const at::Tensor&, const at::Tensor&) override {
    throw std::runtime_error("typed says no");
  }
};

struct ThrowBoxed : OpHandler {
  void boxed(OpCall& call) override {
    if (call.name() == "aten::mm") throw std::runtime_error("boxed says no");
    call.run();
  }
};

struct ThrowAfter : OpHandler {
  void boxed(OpCall& call) override {
    call.run();
    if (call.name() == "aten::mm") throw std::runtime_error("boxed says no");
  }
};

template <typename Handler>
void expect_throws(const std::string& text) {
  const auto x = at::randn({4, 3}), w = at::randn({3, 2}).requires_grad_(true);
  CountMatmuls outer;
  Handler handler;
  const auto loss = at::mm(x, w).sum();
  const auto caught = [&](const std::function<void()>& f) {
    try {
      f();
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), text);
      return;
    }
    ADD_FAILURE() << "did not throw";
  };
  {
    const OpMode first(outer);
    const OpMode second(handler);
    caught([&] { at::mm(x, w); });
    caught([&] { torch::autograd::grad({loss}, {w}, {}, true); });
    multiply();  // the modes are as they were
    EXPECT_EQ(outer.count, 1);
  }
  EXPECT_TRUE(OpModeState::capture().empty());
  EXPECT_TRUE(same(torch::autograd::grad({loss}, {w})[0], at::mm(x.t(), at::ones({4, 2}))));
}

TEST(OpMode, PassesOnWhatATypedHandlerThrows) { expect_throws<ThrowTyped>("typed says no"); }
TEST(OpMode, PassesOnWhatABoxedHandlerThrows) { expect_throws<ThrowBoxed>("boxed says no"); }
TEST(OpMode, PassesOnWhatAHandlerThrowsAfterTheOp) { expect_throws<ThrowAfter>("boxed says no"); }

TEST(OpMode, SurvivesAnOpThatThrows) {
  CountMatmuls typed;
  Trace boxed;
  const OpMode first(typed);
  const OpMode second(boxed);
  EXPECT_THROW(at::addmm(at::ones(7), at::ones({1, 2}), at::ones({2, 1})), c10::Error);
  EXPECT_EQ(multiply().item<float>(), 2);
  EXPECT_EQ(typed.count, 2);
}

// --- Scope ---------------------------------------------------------------------------------------------

/// x² with a derivative of its own.
struct Square : torch::autograd::Function<Square> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return at::mul(x, x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    return {at::mul(grads[0], context->get_saved_variables()[0]) * 2};
  }
};

TEST(OpMode, SeesInsideACustomFunction) {
  const auto x = at::tensor({3.0}).requires_grad_(true);
  Trace handler;
  {
    const OpMode mode(handler);
    Square::apply(x).backward();
  }
  EXPECT_EQ(x.grad().item<double>(), 6);
  EXPECT_EQ(std::count(handler.names.begin(), handler.names.end(), "aten::mul.Tensor"), 2);
  EXPECT_EQ(std::count(handler.names.begin(), handler.names.end(), "aten::mul.Scalar"), 1);
}

TEST(OpMode, IsHiddenWhereItsKeysAreExcludedAndBackAfterwards) {
  CountMatmuls typed;
  Trace boxed;
  const OpMode first(typed);
  const OpMode second(boxed);
  {
    const c10::impl::ExcludeDispatchKeyGuard no_typed(c10::DispatchKey::TESTING_ONLY_GenericMode);
    multiply();  // the boxed key is enough for the boxed handler, which calls addmm in turn
    EXPECT_EQ(boxed.names.back(), "aten::addmm");
    const c10::impl::ExcludeDispatchKeyGuard no_boxed(
        c10::DispatchKey::TESTING_ONLY_GenericWrapper);
    boxed.names.clear();
    multiply();
    EXPECT_EQ(boxed.names, Names{});
    EXPECT_EQ(typed.count, 0);
  }
  multiply();
  EXPECT_EQ(typed.count, 1);
  EXPECT_EQ(boxed.names.back(), "aten::addmm");
}

TEST(OpMode, EndsWhenAnExceptionPasses) {
  CountMatmuls handler;
  try {
    const OpMode mode(handler);
    throw std::runtime_error("out");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(OpModeState::capture().empty());
  multiply();
  EXPECT_EQ(handler.count, 0);
}

bool on(c10::DispatchKey key) { return c10::impl::tls_is_dispatch_key_included(key); }

TEST(OpMode, SwitchesOnOnlyTheKeysThatItNeeds) {
  using enum c10::DispatchKey;
  struct Nothing : OpHandler {};
  Nothing nothing;
  CountMatmuls typed;
  Trace boxed;
  {
    const OpMode first(nothing);
    EXPECT_FALSE(on(TESTING_ONLY_GenericMode) || on(TESTING_ONLY_GenericWrapper));
    const OpMode second(typed);
    EXPECT_TRUE(on(TESTING_ONLY_GenericMode) && !on(TESTING_ONLY_GenericWrapper));
    {
      const OpMode third(boxed);
      EXPECT_TRUE(on(TESTING_ONLY_GenericMode) && on(TESTING_ONLY_GenericWrapper));
      const OpModeGuard off{OpModeState()};
      EXPECT_FALSE(on(TESTING_ONLY_GenericMode) || on(TESTING_ONLY_GenericWrapper));
    }
    EXPECT_TRUE(on(TESTING_ONLY_GenericMode) && !on(TESTING_ONLY_GenericWrapper));
  }
  EXPECT_FALSE(on(TESTING_ONLY_GenericMode) || on(TESTING_ONLY_GenericWrapper));
}

TEST(OpMode, AHandlerKnownByItsBaseIsStillCalled) {
  CountMatmuls handler;
  OpHandler& base = handler;
  const OpMode mode(base);
  multiply();
  EXPECT_EQ(handler.count, 1);
}

TEST(OpMode, RefusesANullHandler) {
  EXPECT_EQ(message_of<c10::ValueError>([] { const OpMode mode(std::shared_ptr<Doubling>{}); }),
            "OpMode was given a null handler");
}

TEST(OpMode, KeepsAHandlerThatItOwns) {
  auto handler = std::make_shared<CountMatmuls>();
  const std::weak_ptr<CountMatmuls> watch = handler;
  {
    const OpMode mode(std::move(handler));
    multiply();
    EXPECT_EQ(watch.lock()->count, 1);
  }
  EXPECT_TRUE(watch.expired());
}

// --- States that are captured and used again -------------------------------------------------------------

TEST(OpModeState, IsEmptyOutsideModes) {
  EXPECT_TRUE(OpModeState().empty());
  EXPECT_TRUE(OpModeState::capture().empty());
  Doubling handler;
  const OpMode mode(handler);
  EXPECT_FALSE(OpModeState::capture().empty());
}

TEST(OpModeGuard, TakesThePlaceOfTheModes) {
  CountMatmuls first;
  CountMatmuls second;
  OpModeState state;
  {
    const OpMode mode(first);
    state = OpModeState::capture();
    const OpMode inner(second);
    {
      const OpModeGuard guard(state);
      multiply();
    }
    EXPECT_EQ(first.count, 1);
    EXPECT_EQ(second.count, 0);
    multiply();
    EXPECT_EQ(second.count, 1);
    {
      const OpModeGuard off{OpModeState()};
      multiply();
    }
    EXPECT_EQ(second.count, 1);
  }
}

TEST(OpModeGuard, BringsBackAnEndedModeThatOwnsItsHandler) {
  const auto handler = std::make_shared<CountMatmuls>();
  CountMatmuls other;
  OpModeState state;
  {
    const OpMode mode(handler);
    state = OpModeState::capture();
  }
  const OpMode mode(other);
  {
    const OpModeGuard guard(state);
    multiply();
    {
      const auto again = OpModeState::capture();
      const OpModeGuard off{OpModeState()};
      const OpModeGuard inner(again);
      const OpMode beside(other);
      multiply();
    }
  }
  multiply();
  EXPECT_EQ(handler->count, 2);
  EXPECT_EQ(other.count, 2);
}

TEST(OpModeGuard, LeavesOutAnEndedModeThatOnlyLooked) {
  const auto changes = std::make_shared<Doubling>();
  testing::ObserveMatmuls looks;
  OpModeState state;
  {
    const OpMode first(changes);
    const OpMode second(looks);
    state = OpModeState::capture();
  }
  const OpModeGuard guard(state);
  EXPECT_EQ(multiply().item<float>(), 4);
  EXPECT_EQ(looks.count, 0);
}

TEST(OpModeGuard, RefusesAnEndedModeThatChangedResults) {
  OpModeState state;
  {
    Doubling handler;
    const OpMode mode(handler);
    state = OpModeState::capture();
  }
  EXPECT_EQ(message_of([&] { const OpModeGuard guard(state); }),
            "an OpMode that is needed again has ended, and with it perhaps its handler; make the "
            "mode from a std::shared_ptr, keep it open, or let the handler's changes_results() "
            "return false if it only looks");
  EXPECT_TRUE(OpModeState::capture().empty());
}

}  // namespace
}  // namespace torchlore
