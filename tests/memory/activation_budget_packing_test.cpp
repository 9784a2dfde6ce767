// Activations of two bit patterns, which an ActivationBudget keeps as bits.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "../../src/memory/budget/two_valued.hpp"
#include "budget_support.hpp"
#include "torchlore/core/bytes.hpp"

namespace torchlore {
namespace {

using budget::TwoValued;
using testing::expect_exact;
using testing::same_bytes;

/// Expects the tensor's bytes to come back from one bit an element.
void expect_packs(const at::Tensor& tensor) {
  const auto packed = TwoValued::pack(tensor.storage(), tensor.element_size());
  ASSERT_NE(packed, nullptr) << tensor.dtype();
  EXPECT_EQ(packed->bytes(), (tensor.numel() + 63) / 64 * 8);
  const auto bytes = packed->unpack();
  ASSERT_EQ(bytes.nbytes(), tensor.nbytes());
  EXPECT_EQ(std::memcmp(bytes.data(), tensor.const_data_ptr(), tensor.nbytes()), 0)
      << tensor.dtype() << ' ' << tensor.numel();
}

TEST(TwoValuedPacking, AllElementSizesAndLengths) {
  for (const auto dtype : {at::kBool, at::kByte, at::kBFloat16, at::kHalf, at::kInt, at::kFloat,
                           at::kDouble, at::kLong}) {
    for (const int64_t count : {512, 513, 575, 576, 640, 100'003}) {
      testing::seed(static_cast<uint64_t>(count));
      expect_packs((at::rand({count}) < 0.3).to(dtype));
      expect_packs((at::rand({count}) < 0.001).to(dtype));
    }
  }
}

TEST(TwoValuedPacking, Constants) {
  expect_packs(at::zeros({1000}));
  expect_packs(at::full({1000}, 0.5, at::kDouble));
}

TEST(TwoValuedPacking, PatternsAreBitsNotNumbers) {
  const auto second = at::rand({4096}) < 0.5;
  expect_packs(at::where(second, 0.0F, -0.0F));
  expect_packs(at::where(second, std::numeric_limits<float>::quiet_NaN(), 1.0F));
  expect_packs(at::where(second, -std::numeric_limits<float>::infinity(), 0.0F));
  const auto zeros = at::where(at::arange(4096) < 2048, 1.0F, at::where(second, 0.0F, -0.0F));
  EXPECT_EQ(TwoValued::pack(zeros.storage(), 4), nullptr);  // 1, 0 and -0
}

TEST(TwoValuedPacking, AThirdPatternAnywhereIsFound) {
  for (const int64_t place : {0, 1, 63, 64, 500, 9'999, 599'999}) {
    for (const auto dtype : {at::kByte, at::kHalf, at::kFloat, at::kDouble}) {
      auto mask = (at::rand({600'000}) < 0.5).to(dtype);
      mask[0] = 0;
      mask[2] = 1;
      mask[place] = 3;
      EXPECT_EQ(TwoValued::pack(mask.storage(), mask.element_size()), nullptr) << place;
    }
  }
}

TEST(TwoValuedPacking, RefusesOtherElementsAndFewBytes) {
  EXPECT_EQ(TwoValued::pack(at::zeros({1000}, at::kComplexDouble).storage(), 16), nullptr);
  EXPECT_EQ(TwoValued::pack(at::zeros({127}).storage(), 4), nullptr);
  EXPECT_EQ(TwoValued::pack(at::zeros({1001}, at::kByte).storage(), 4), nullptr);
  EXPECT_EQ(TwoValued::pack(at::empty({0}).storage(), 4), nullptr);
}

struct ActivationBudgetPacking : ::testing::Test {
  ActivationBudgetPacking() {
    at::set_num_threads(1);
    testing::seed(0);
    x = at::randn({32, 64});
    w = at::randn({64, 64}).requires_grad_();
  }
  /// Two layers with dropout; what they save is 2 masks and 2 results, 8 KiB each.
  at::Tensor dropouts() const {
    auto h = at::dropout(x.matmul(w).tanh(), 0.2, true);
    h = at::dropout(h.matmul(w).tanh(), 0.5, true);
    return h.sum();
  }
  at::Tensor x;
  at::Tensor w;
};

TEST_F(ActivationBudgetPacking, MasksAreKeptAsBitsAndNothingIsDrawnAgain) {
  testing::seed(3);
  const auto expected = [&] {
    dropouts().backward();
    return std::exchange(w.mutable_grad(), at::Tensor());
  }();
  testing::seed(3);
  at::Tensor loss;
  std::shared_ptr<const ActivationBudgetStats> stats;
  {
    // Of 40 KiB: three results (the second product reads one that was dropped out) and one mask.
    ActivationBudget scope(KiB(33));
    stats = scope.stats();
    loss = dropouts();
  }
  EXPECT_EQ(stats->saved_bytes, KiB(5 * 8).count());
  EXPECT_EQ(stats->packed, 1);
  loss.backward();
  EXPECT_EQ(stats->packed, 2);  // the first mask made room for the second
  EXPECT_EQ(stats->evictions, 0);
  EXPECT_EQ(stats->replayed_ops, 0);
  EXPECT_TRUE(same_bytes(w.grad(), expected));
}

TEST_F(ActivationBudgetPacking, WithAutocastMasksAreOfSixteenBits) {
  expect_exact({.parameters = {w}, .loss = [&] {
                  auto h = x.matmul(w).to(at::kBFloat16);
                  h = at::dropout(h, 0.3, true) * at::dropout(h.sin(), 0.1, true);
                  return h.to(at::kFloat).pow(2).mean();
                }});
}

TEST_F(ActivationBudgetPacking, MasksThatOtherOpsNeedAgain) {
  expect_exact({.parameters = {w}, .loss = [&] {
                  const auto h = x.matmul(w);
                  const auto mask = (h > 0).to(at::kFloat);
                  auto y = (mask * h).sin() * (mask + h.tanh()).exp();
                  y = at::where(h > 0.5, y, y.pow(2)).masked_fill(h < -1, 0.25);
                  return (y * mask).mean();
                }});
}

TEST_F(ActivationBudgetPacking, AReplayThatOverwritesAMaskLeavesItsBits) {
  const auto run = [&](bool in_place) {
    testing::seed(6);
    const auto h = x.matmul(w);
    auto mask = at::empty_like(h).bernoulli_(0.5);
    auto y = (h * mask).sin();
    // A plain run of the in-place form throws: what the product saved is overwritten.
    auto next = in_place ? mask.mul_(0.5) : mask * 0.5;
    next = in_place ? next.sub_(h.detach()) : next - h.detach();
    return (y * next).sum();
  };
  run(false).backward();
  const auto expected = std::exchange(w.mutable_grad(), at::Tensor());
  for (const int64_t budget : {0, 9, 18, 26}) {
    at::Tensor loss;
    {
      ActivationBudget scope{KiB(budget)};
      loss = run(true);
    }
    loss.backward();
    EXPECT_TRUE(same_bytes(w.grad(), expected)) << budget;
    w.mutable_grad() = at::Tensor();
  }
}

TEST_F(ActivationBudgetPacking, AMaskWrittenByHandIsSeenAsInAPlainRun) {
  const auto run = [&](bool budgeted) {
    testing::seed(4);
    at::Tensor mask;
    at::Tensor loss;
    {
      std::unique_ptr<ActivationBudget> budget;
      if (budgeted) budget = std::make_unique<ActivationBudget>(KiB(1));
      const auto h = x.matmul(w);
      mask = at::empty_like(h).bernoulli_(0.5);
      loss = (h * mask).sum() + h.tanh().sum();
    }
    mask.data_ptr<float>()[3] = 0.25F;
    w.mutable_grad() = at::Tensor();
    loss.backward();
    return w.grad().clone();
  };
  EXPECT_TRUE(same_bytes(run(true), run(false)));
}

TEST_F(ActivationBudgetPacking, AMaskWrittenByHandBeforeItIsPackedIsNotWhatItsOpMade) {
  expect_exact({.parameters = {w}, .loss = [&] {
                  const auto h = x.matmul(w);
                  at::Tensor y;
                  {
                    auto mask = at::empty_like(h).bernoulli_(0.5);
                    y = (h * mask).sin();
                    auto* first = mask.data_ptr<float>();
                    *first = 1 - *first;
                    y = y + h.tanh();
                  }
                  return y.matmul(w).tanh().matmul(w).exp().mean();
                }});
}

TEST_F(ActivationBudgetPacking, ARetainedGraphPacksAgain) {
  testing::seed(5);
  dropouts().backward();
  const auto expected = std::exchange(w.mutable_grad(), at::Tensor());
  for (const int64_t budget : {0, 9, 12, 25}) {
    testing::seed(5);
    at::Tensor loss;
    {
      ActivationBudget scope{KiB(budget)};
      loss = dropouts();
    }
    for (int k = 0; k < 3; ++k) {
      loss.backward({}, /*retain_graph=*/true);
      EXPECT_TRUE(same_bytes(w.grad(), expected)) << budget << ", " << k;
      w.mutable_grad() = at::Tensor();
    }
  }
}

}  // namespace
}  // namespace torchlore
