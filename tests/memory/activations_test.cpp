#include "torchlore/memory/activations.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

TEST(Activations, KeepEntersNothing) { EXPECT_EQ(Activations::keep().enter(), nullptr); }

TEST(Activations, TheScopeEndsWithWhatEnterReturns) {
  const auto w = at::randn({64, 64}).set_requires_grad(true);
  const auto rounded = w.detach().exp().to(at::kBFloat16).to(at::kFloat);
  const auto compress = Activations::compress(at::kBFloat16);
  const auto gradient = [&](bool inside) {
    auto scope = compress.enter();
    if (!inside) scope.reset();
    const auto loss = w.exp().sum();
    scope.reset();
    loss.backward();
    const auto result = w.grad().clone();
    w.mutable_grad() = at::Tensor();
    return result;
  };
  EXPECT_TRUE(same(gradient(true), rounded));
  EXPECT_TRUE(same(gradient(false), w.detach().exp()));
}

TEST(Activations, BadOptionsThrowWhenItIsMade) {
  EXPECT_EQ(message_of([] { Activations::compress(at::kInt); }),
            "CompressActivations keeps activations as BFloat16, Half or Char (int8 per row), but "
            "dtype is Int");
  EXPECT_EQ(message_of([] { Activations::offload({.min_bytes = -5}); }),
            "OffloadActivations' min_bytes must be a finite number, 0 or above, but is -5");
  EXPECT_THROW(Activations::budget(Bytes(-1)), c10::ValueError);
}

}  // namespace
}  // namespace torchlore
