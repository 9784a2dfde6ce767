#include "torchlore/precision/autocast.hpp"

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/message.hpp"

namespace torchlore {
namespace {

bool enabled() { return at::autocast::is_autocast_enabled(at::kCPU); }

at::ScalarType product_dtype(at::ScalarType input = at::kFloat) {
  const auto x = at::ones({2, 2}, input);
  return at::mm(x, x).scalar_type();
}

/// The texts of all warnings since it was made.
class CollectWarnings : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }
  std::vector<std::string> texts;

 private:
  c10::WarningUtils::WarningHandlerGuard guard_{this};
};

TEST(Autocast, RunsMatrixProductsInTheDtypeOfTheScope) {
  EXPECT_EQ(product_dtype(), at::kFloat);
  {
    const Autocast amp(at::kCPU);
    EXPECT_EQ(product_dtype(), at::kBFloat16);
    EXPECT_EQ(product_dtype(at::kDouble), at::kDouble);
  }
  {
    const Autocast amp(at::Device("cpu"), at::kHalf);
    EXPECT_EQ(product_dtype(), at::kHalf);
  }
  EXPECT_EQ(product_dtype(), at::kFloat);
}

TEST(Autocast, RestoresWhatItFoundWhenNested) {
  const auto default_dtype = at::autocast::get_autocast_dtype(at::kCPU);
  {
    const Autocast outer(at::kCPU, at::kHalf);
    {
      const Autocast inner(at::kCPU, at::kBFloat16, {.cache = false});
      EXPECT_EQ(product_dtype(), at::kBFloat16);
      EXPECT_FALSE(at::autocast::is_autocast_cache_enabled());
      {
        const Autocast off(at::kCPU, std::nullopt, {.enabled = false});
        EXPECT_EQ(product_dtype(), at::kFloat);
      }
      EXPECT_EQ(product_dtype(), at::kBFloat16);
    }
    EXPECT_EQ(product_dtype(), at::kHalf);
    EXPECT_TRUE(at::autocast::is_autocast_cache_enabled());
  }
  EXPECT_FALSE(enabled());
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), default_dtype);
}

TEST(Autocast, DevicesAreApart) {
  const Autocast cuda(at::kCUDA);
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCUDA), at::kHalf);
  EXPECT_EQ(product_dtype(), at::kFloat);
  const Autocast cpu(at::kCPU);
  EXPECT_EQ(product_dtype(), at::kBFloat16);
  EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCUDA));
}

TEST(Autocast, EndsWhenAnExceptionPasses) {
  EXPECT_THROW(
      {
        const Autocast amp(at::kCPU);
        throw std::runtime_error("from the forward");
      },
      std::runtime_error);
  EXPECT_FALSE(enabled());
}

TEST(Autocast, EmptiesTheCacheWithTheOutermostScopeOnly) {
  const auto weight = at::ones({2, 2}).requires_grad_(true);
  const auto x = at::ones({2, 2});
  const auto uses_outside = weight.use_count();
  {
    const Autocast outer(at::kCPU);
    at::mm(x, weight);
    const auto uses = weight.use_count();
    { const Autocast inner(at::kCPU); }
    EXPECT_EQ(weight.use_count(), uses);
    EXPECT_GT(uses, uses_outside);
  }
  EXPECT_EQ(weight.use_count(), uses_outside);
  {
    const Autocast amp(at::kCPU, std::nullopt, {.cache = false});
    at::mm(x, weight);
    EXPECT_EQ(weight.use_count(), uses_outside);
  }
}

TEST(Autocast, SeesAChangedParameterInTheNextScope) {
  auto weight = at::ones({2, 2}).requires_grad_(true);
  const auto x = at::ones({2, 2});
  const auto forward = [&] {
    const Autocast amp(at::kCPU);
    return at::mm(x, weight).sum().item<double>();
  };
  EXPECT_EQ(forward(), 8);
  weight.data().mul_(2);
  EXPECT_EQ(forward(), 16);
}

TEST(Autocast, IsUnseenByOtherThreads) {
  const Autocast amp(at::kCPU);
  bool seen = true;
  std::thread([&] { seen = enabled(); }).join();
  EXPECT_FALSE(seen);
}

TEST(Autocast, BackwardRepeatsTheDtypesOfTheForward) {
  const auto weight = at::ones({2, 2}).requires_grad_(true);
  at::Tensor y;
  {
    const Autocast amp(at::kCPU);
    y = at::mm(at::ones({2, 2}), weight);
  }
  y.sum().backward();
  EXPECT_EQ(weight.grad().scalar_type(), at::kFloat);
}

TEST(Autocast, FunctionFormReturnsWhatTheFunctionReturns) {
  EXPECT_EQ(autocast(at::kCPU, at::kHalf, [] { return product_dtype(); }), at::kHalf);
  EXPECT_FALSE(enabled());
  int value = 1;
  int& same = autocast(at::kCPU, std::nullopt, [&]() -> int& { return value; });
  EXPECT_EQ(&same, &value);
}

TEST(Autocast, WarnsWhenDestroyedOnAnotherThreadAndLeavesItAlone) {
  CollectWarnings silent;  // the scope around warns too: the scope inside it never ended here
  const Autocast around(at::kCPU);
  auto scope = std::make_unique<Autocast>(at::kCPU, at::kHalf);
  std::vector<std::string> warnings;
  bool other_enabled = false;
  std::thread([&] {
    CollectWarnings collected;
    const Autocast theirs(at::kCPU);
    scope.reset();
    other_enabled = enabled();
    warnings = collected.texts;
  }).join();
  EXPECT_EQ(warnings,
            std::vector<std::string>{"an Autocast scope was destroyed on another thread than its "
                                     "own, or after the scope around it; autocast is left as it "
                                     "is. End scopes on their thread, innermost first"});
  EXPECT_TRUE(other_enabled);
  EXPECT_TRUE(enabled());
}

TEST(Autocast, WarnsWhenTheOuterScopeEndsFirstAndEndsBoth) {
  CollectWarnings collected;
  auto outer = std::make_unique<Autocast>(at::kCPU);
  auto inner = std::make_unique<Autocast>(at::kCPU, at::kHalf);
  outer.reset();
  EXPECT_EQ(collected.texts,
            std::vector<std::string>{"an Autocast scope was destroyed before a scope inside it; "
                                     "both have ended. End scopes innermost first"});
  EXPECT_FALSE(enabled());
  const Autocast next(at::kCPU);
  inner.reset();
  EXPECT_EQ(collected.texts.size(), 2);
  EXPECT_EQ(product_dtype(), at::kBFloat16);
}

TEST(Autocast, RefusesADtypeItCannotCastTo) {
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Autocast(at::kCPU, at::kFloat); }),
            "autocast on 'cpu' casts to BFloat16 or Half, but dtype is Float; to compute without "
            "casts leave the scope out, or pass {.enabled = false}");
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Autocast(at::kCUDA, at::kInt); }),
            "autocast on 'cuda' casts to BFloat16 or Half, but dtype is Int; to compute without "
            "casts leave the scope out, or pass {.enabled = false}");
  EXPECT_FALSE(enabled());
}

TEST(Autocast, RefusesADeviceWithoutAutocast) {
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Autocast(at::kMeta); }),
            "LibTorch has no autocast for the device 'meta'; pass the device that the model runs "
            "on, such as at::kCPU or at::kCUDA");
}

}  // namespace
}  // namespace torchlore
