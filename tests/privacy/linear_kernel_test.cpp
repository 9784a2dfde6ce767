#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../../src/privacy/kernels/linear.hpp"
#include "../../src/privacy/kernels/weighted_sum.hpp"
#include "per_example_kernel_test.hpp"

namespace torchlore {
namespace {

using kernels::ExampleLayout;

/// One example's rows of [outer, B, inner, width], in float64.
at::Tensor rows_of(const at::Tensor& t, int64_t example) {
  return t.select(1, example).reshape({t.size(0) * t.size(2), t.size(3)}).to(at::kDouble);
}

class LinearKernelTest : public testing::PerExampleKernelTest {
 protected:
  /// Runs the kernel on random rows and compares all that it gives with products in float64.
  void check(const ExampleLayout& layout, int64_t in, int64_t out) {
    SCOPED_TRACE(::testing::Message() << "[" << layout.outer << ", " << layout.batch << ", "
                                      << layout.inner << "] " << in << " -> " << out);
    const auto x = at::randn({layout.outer, layout.batch, layout.inner, in});
    const auto g = at::randn({layout.outer, layout.batch, layout.inner, out});
    Gradients weight(layout.batch, in * out), bias(layout.batch, out);
    const kernels::LinearRows rows{.layout = layout,
                                   .input = x.const_data_ptr<float>(),
                                   .gradient = g.const_data_ptr<float>(),
                                   .in = in,
                                   .out = out};
    kernels::linear_gradients(rows, weight.all(), bias.all(), scratch, *k);
    Gradients weight_norms(layout.batch, 0), bias_norms(layout.batch, 0);
    Gradients bias_alone(layout.batch, out);
    kernels::linear_gradients(rows, weight_norms.norms_only(), bias_norms.norms_only(), scratch,
                              *k);
    kernels::linear_gradients(rows, {}, bias_alone.all(), scratch, *k);
    for (int64_t b = 0; b < layout.batch; ++b) {
      const auto product = rows_of(g, b).t().mm(rows_of(x, b));
      weight.expect(b, product);
      weight_norms.expect_norm(b, product);
      bias.expect(b, rows_of(g, b).sum(0));
      bias_norms.expect_norm(b, rows_of(g, b).sum(0));
      bias_alone.expect(b, rows_of(g, b).sum(0));
    }
  }
};

TEST_P(LinearKernelTest, EqualsProductsInDoubleForEverySize) {
  for (const int64_t in : {1, 3, 7, 8, 9, 12, 15, 16, 17, 24, 47, 48, 49, 64, 65, 96, 100}) {
    for (const int64_t out : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17}) check({1, 3, 5}, in, out);
  }
}

TEST_P(LinearKernelTest, FindsTheExampleInEveryLayout) {
  for (const int64_t outer : {1, 2, 7}) {
    for (const int64_t batch : {1, 2, 7}) {
      for (const int64_t inner : {1, 2, 9}) check({outer, batch, inner}, 10, 6);
    }
  }
}

TEST_P(LinearKernelTest, StaysAccurateOverManyRows) {
  for (const int64_t rows : {1023, 1024, 1025, 5000}) check({1, 2, rows}, 20, 9);
  check({4096, 2, 1}, 20, 9);
}

TEST_P(LinearKernelTest, LeavesNothingOfNothing) {
  check({1, 0, 5}, 4, 3);
  check({1, 2, 5}, 0, 3);
  check({1, 2, 5}, 4, 0);
  check({1, 2, 0}, 4, 3);
  check({0, 2, 1}, 4, 3);
}

TEST_P(LinearKernelTest, KeepsABadExampleToItself) {
  auto x = at::randn({1, 3, 4, 5});
  const auto g = at::randn({1, 3, 4, 6});
  x[0][1][2][3] = std::numeric_limits<float>::quiet_NaN();
  Gradients weight(3, 30), bias(3, 6);
  kernels::linear_gradients({.layout = {1, 3, 4},
                             .input = x.const_data_ptr<float>(),
                             .gradient = g.const_data_ptr<float>(),
                             .in = 5,
                             .out = 6},
                            weight.all(), bias.all(), scratch, *k);
  for (const int64_t b : {0, 2}) weight.expect(b, rows_of(g, b).t().mm(rows_of(x, b)));
  EXPECT_TRUE(weight.norms[1].isnan().item<bool>());
}

TEST_P(LinearKernelTest, AddsWeightedGradients) {
  for (const int64_t batch : {0, 1, 5}) {
    for (const int64_t count : {0, 1, 15, 16, 17, 1023, 1025, 4095, 4097, 20'000}) {
      const auto gradients = at::randn({batch, count});
      auto factors = at::rand({batch});
      auto sum = at::randn({count});
      auto expected =
          sum.to(at::kDouble) + at::mv(gradients.to(at::kDouble).t(), factors.to(at::kDouble));
      if (batch > 2) {  // an example whose factor is 0 is not looked at
        expected -= gradients[2].to(at::kDouble) * factors[2].item<double>();
        gradients[2].fill_(std::numeric_limits<float>::quiet_NaN());
        factors[2] = 0;
      }
      kernels::add_weighted_sum(gradients.const_data_ptr<float>(), factors.const_data_ptr<float>(),
                                batch, count, sum.mutable_data_ptr<float>(), *k);
      EXPECT_TRUE(testing::near(sum, expected)) << batch << " x " << count;
    }
  }
}

TEST_P(LinearKernelTest, SumsSquaresInEveryRangeOfFloat) {
  for (const double scale : {0.0, 1e-30, 1e-19, 1.0, 1e19, 1e30}) {
    for (const int64_t count : {0, 1, 15, 16, 63, 64, 65, 1024, 1025, 3000}) {
      const auto x = (at::randn({count}, at::kDouble) * scale).to(at::kFloat);
      const double expected = x.to(at::kDouble).square().sum().item<double>();
      EXPECT_NEAR(k->sum_squares(x.const_data_ptr<float>(), count), expected, 1e-6 * expected)
          << count << " of about " << scale;
    }
  }
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    auto x = at::randn({100});
    x[50] = bad;
    EXPECT_FALSE(std::isfinite(k->sum_squares(x.const_data_ptr<float>(), 100)));
  }
}

INSTANTIATE_TEST_SUITE_P(AllSets, LinearKernelTest,
                         ::testing::Values("portable", "avx2", "avx512"));

}  // namespace
}  // namespace torchlore
