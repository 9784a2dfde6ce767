#include "torchlore/gradient/accumulator.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/gradient_pass.hpp"

namespace torchlore {
namespace {

/// A linear model with squared error, small enough to see through.
struct Model {
  explicit Model(at::ScalarType dtype) {
    at::manual_seed(1);
    x = at::randn({12, 5}, dtype);
    y = at::randn({12}, dtype);
    w = at::randn({5}, dtype).requires_grad_();
  }
  at::Tensor errors(int64_t from, int64_t to) const {
    return (at::mv(x.slice(0, from, to), w) - y.slice(0, from, to)).square();
  }
  /// The gradient of the mean over [0, to), in one batch.
  at::Tensor whole_gradient(int64_t to) {
    w.mutable_grad() = at::Tensor();
    errors(0, to).mean().backward();
    const auto gradient = w.grad().clone();
    w.mutable_grad() = at::Tensor();
    return gradient;
  }
  at::Tensor finish(const GradientAccumulator& window) {
    divide_gradients_({w.grad()}, window.divisor());
    return w.grad();
  }
  at::Tensor x, y, w;
};

/// The promise: within 1e-6 of the big batch in float32, 1e-12 in float64, relative to its norm.
::testing::AssertionResult equals_big_batch(const at::Tensor& actual, const at::Tensor& expected) {
  const double error = ((actual - expected).norm() / expected.norm()).item().toDouble();
  const double limit = expected.scalar_type() == at::kDouble ? 1e-12 : 1e-6;
  if (error <= limit) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "relative error " << error << " above " << limit;
}

class BigBatchTest : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(BigBatchTest, EqualMeansMakeTheMeanOfTheWindow) {
  for (const int64_t n : {1, 2, 3, 4}) {
    Model m(GetParam());
    const auto expected = m.whole_gradient(12);
    GradientAccumulator window(Accumulate::batches(n));
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_FALSE(window.full());
      window.add(m.errors(i * 12 / n, (i + 1) * 12 / n).mean()).backward();
    }
    EXPECT_TRUE(window.full());
    EXPECT_TRUE(equals_big_batch(m.finish(window), expected)) << n;
  }
}

TEST_P(BigBatchTest, SumsAreWeighedByTheirCounts) {
  Model m(GetParam());
  const auto expected = m.whole_gradient(12);
  GradientAccumulator window(Accumulate::batches(4));
  int64_t from = 0;
  for (const int64_t count : {5, 1, 0, 6}) {
    window.add({m.errors(from, from + count).sum(), count}).backward();
    from += count;
  }
  EXPECT_TRUE(window.full());
  EXPECT_TRUE(equals_big_batch(m.finish(window), expected));
}

TEST_P(BigBatchTest, CountsMayBeTensors) {
  Model m(GetParam());
  const auto expected = m.whole_gradient(8);
  GradientAccumulator window(Accumulate::batches(2));
  window.add({m.errors(0, 3).sum(), at::full({}, 3, at::kLong)}).backward();
  window.add({m.errors(3, 8).sum(), at::full({1}, 5, at::kLong)}).backward();
  EXPECT_TRUE(equals_big_batch(m.finish(window), expected));
}

TEST_P(BigBatchTest, APartialWindowIsDividedByWhatItHolds) {
  Model m(GetParam());
  const auto expected = m.whole_gradient(6);
  GradientAccumulator window(Accumulate::batches(4));
  window.add(m.errors(0, 3).mean()).backward();
  window.add(m.errors(3, 6).mean()).backward();
  EXPECT_FALSE(window.full());
  EXPECT_TRUE(equals_big_batch(m.finish(window), expected));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, BigBatchTest, ::testing::Values(at::kFloat, at::kDouble));

TEST(GradientAccumulator, AWindowByCountsEndsWhenTheyAreReached) {
  Model m(at::kDouble);
  GradientAccumulator window(Accumulate::counts(7));
  const auto expected = m.whole_gradient(8);
  window.add({m.errors(0, 4).sum(), 4}).backward();
  EXPECT_FALSE(window.full());
  window.add({m.errors(4, 8).sum(), 4}).backward();
  EXPECT_TRUE(window.full());
  EXPECT_TRUE(testing::close(m.finish(window), expected));
}

TEST(GradientAccumulator, OneMicroBatchIsLeftBitForBit) {
  GradientAccumulator window;
  const auto loss = at::full({}, 0.1f).requires_grad_();
  EXPECT_TRUE(window.add(loss).is_same(loss));
  EXPECT_EQ(window.divisor().item<double>(), 1.0);
}

TEST(GradientAccumulator, HalfPrecisionSumsStayInRange) {
  // 40 micro-batches of 10,000 tokens whose gradient is 1 each: the plain sum, 400,000, is beyond
  // float16's 65,504.
  auto w = at::zeros({}, at::kHalf).requires_grad_();
  GradientAccumulator window(Accumulate::counts(400'000));
  while (!window.full()) window.add({w.to(at::kFloat) * 10'000, 10'000}).backward();
  EXPECT_EQ(window.batches(), 40);
  divide_gradients_({w.grad()}, window.divisor());
  EXPECT_NEAR(w.grad().item<float>(), 1.0, 2e-3);
}

TEST(GradientAccumulator, NothingToLearnFromGivesZeroGradients) {
  Model m(at::kFloat);
  GradientAccumulator window(Accumulate::batches(3));
  window.add({m.errors(0, 0).sum(), 0}).backward();
  window.add({m.errors(0, 0).sum(), at::zeros({}, at::kLong)}).backward();
  window.add_empty();
  EXPECT_TRUE(window.full());
  EXPECT_EQ(window.divisor().item<double>(), 1.0);
  EXPECT_TRUE(testing::same(m.finish(window), at::zeros({5})));
}

TEST(GradientAccumulator, RanksShareOneMean) {
  // The other rank has 9 tokens in the window; data parallel has averaged the gradients of both.
  const Reducer ranks(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::sum) t.add_(9);
  });
  GradientAccumulator window(Accumulate::batches(1), {.reducer = ranks});
  auto w = at::ones({}).requires_grad_();
  window.add({w * 3, 3}).backward();
  // Averaged gradient of both ranks' sums: (3 + 9) / 2 in units of one token; the mean is 1.
  auto averaged = w.grad() * 2;
  EXPECT_EQ((averaged / window.divisor()).item<double>(), 1.0);
}

TEST(GradientAccumulator, NeverCopiesGradients) {
  Model m(at::kFloat);
  GradientAccumulator window(Accumulate::batches(3));
  window.add(m.errors(0, 4).mean()).backward();
  const auto* memory = m.w.grad().data_ptr();
  window.add(m.errors(4, 8).mean()).backward();
  window.add(m.errors(8, 12).mean()).backward();
  m.finish(window);
  EXPECT_EQ(m.w.grad().data_ptr(), memory);
}

TEST(GradientAccumulator, SavesAndLoads) {
  GradientAccumulator saved(Accumulate::batches(3));
  saved.add({at::ones({}), 100});
  saved.reset();
  GradientAccumulator loaded;
  loaded.load_state_dict(saved.state_dict());
  EXPECT_EQ(loaded.window().size(), 3);
  const auto a = saved.add({at::ones({}), 7}), b = loaded.add({at::ones({}), 7});
  EXPECT_TRUE(testing::same(a, b));
}

TEST(GradientAccumulator, TheWindowChangesOnlyBetweenWindows) {
  GradientAccumulator window(Accumulate::batches(2));
  window.set_window(Accumulate::batches(3));
  window.add(at::ones({}));
  EXPECT_EQ(testing::message_of([&] { window.set_window(Accumulate::batches(4)); }),
            "the window can only be changed between windows, but 1 micro-batches are in it; finish "
            "the window and call reset() first");
  EXPECT_EQ(
      testing::message_of([&] { window.state_dict(); }),
      "cannot save inside a window (1 micro-batches are in it), because its gradients would be "
      "lost; save after a step, or finish the window first");
  EXPECT_EQ(window.window().size(), 3);
}

TEST(GradientAccumulator, NamesMisuse) {
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Accumulate::batches(0); }),
            "Accumulate::batches(n) must be 1 or more, but is 0");
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Accumulate::counts(-5); }),
            "Accumulate::counts(n) must be 1 or more, but is -5");
  GradientAccumulator counts(Accumulate::counts(10));
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { counts.add(at::ones({})); }),
            "a window of 10 counts needs Loss{sum, count}, but got a 0-d mean without a count");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] {
              counts.add({at::ones({}), -1});
            }),
            "a count must be 0 or more, but is -1");
  GradientAccumulator window(Accumulate::batches(2));
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([&] { window.add(at::ones({3})); }),
      "a loss must be 0-d (a mean, or the sum of a Loss{sum, count}), but has shape [3]; reduce "
      "it first");
  window.add(at::ones({}));
  EXPECT_EQ(testing::message_of([&] {
              window.add({at::ones({}), 2});
            }),
            "a window holds means or Loss{sum, count}, not both: their weights cannot be compared");
  window.add(at::ones({}));
  EXPECT_EQ(
      testing::message_of([&] { window.add(at::ones({})); }),
      "the window is full (2 micro-batches): divide by divisor(), step, and call reset() before "
      "the next one");
}

}  // namespace
}  // namespace torchlore
