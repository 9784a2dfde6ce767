#include "../../src/attention/shifted_attention.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using attention::AttentionInputGradients;
using attention::AttentionOutput;
using attention::KeyShifts;

/// What a test varies; the rest is as small as it may be.
struct Case {
  int64_t batch = 1;
  int64_t heads = 2;
  int64_t key_heads = 2;
  int64_t queries = 70;
  int64_t keys = 70;
  int64_t head_dim = 16;
  int64_t value_dim = 16;
  KeyShifts shifts = {0, -1, -2, -4, -8, -16, -32, -64};
  at::ScalarType dtype = at::kDouble;
  double scale = 0.3;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << c.batch << " x " << c.heads << " (" << c.key_heads << ") heads, " << c.queries << " of "
      << c.keys << ", " << c.head_dim << " and " << c.value_dim << ", " << c.dtype << ", shifts";
  for (const int64_t shift : c.shifts) out << ' ' << shift;
  return out;
}

/// Random inputs, and what follows from them.
struct Tensors {
  explicit Tensors(const Case& c)
      : q(at::randn({c.batch, c.heads, c.queries, c.head_dim}, at::kDouble).to(c.dtype)),
        k(at::randn({c.batch, c.key_heads, c.keys, c.head_dim}, at::kDouble).to(c.dtype)),
        v(at::randn({c.batch, c.key_heads, c.keys, c.value_dim}, at::kDouble).to(c.dtype)),
        grad_out(at::randn({c.batch, c.heads, c.queries, c.value_dim}, at::kDouble).to(c.dtype)),
        grad_log_sum_exp(at::randn({c.batch, c.heads, c.queries}, at::kDouble)) {}

  at::Tensor q, k, v, grad_out, grad_log_sum_exp;
};

/// [T, S] bool.
at::Tensor visible(const Case& c) {
  const auto mask = at::zeros({c.queries, c.keys}, at::kBool);
  auto seen = mask.accessor<bool, 2>();
  for (int64_t i = 0; i < c.queries; ++i) {
    for (const int64_t shift : c.shifts) {
      if (i + shift >= 0 && i + shift < c.keys) seen[i][i + shift] = true;
    }
  }
  return mask;
}

/// Everything in float64, by the whole matrix.
struct Expected {
  AttentionOutput output;
  AttentionInputGradients gradients;
};

/// Sums the query heads that a key head serves.
at::Tensor per_key_head(const at::Tensor& t, int64_t key_heads) {
  return t.reshape({t.size(0), key_heads, -1, t.size(2), t.size(3)}).sum(2);
}

Expected expected(const Case& c, const Tensors& t) {
  const auto wide = [&](const at::Tensor& x) { return x.to(at::kDouble); };
  const auto each = [&](const at::Tensor& x) {
    return wide(x).repeat_interleave(c.heads / c.key_heads, 1);
  };
  const auto q = wide(t.q), k = each(t.k), v = each(t.v), g = wide(t.grad_out);
  const auto mask = visible(c);
  const auto hidden = mask.logical_not();
  const auto scores = (q.matmul(k.transpose(2, 3)) * c.scale)
                          .masked_fill(hidden, -std::numeric_limits<double>::infinity());
  const auto log_sum_exp = scores.logsumexp(3);
  const auto p = (scores - log_sum_exp.unsqueeze(3)).exp().masked_fill(hidden, 0);
  const auto out = p.matmul(v);
  const auto delta = (g * out).sum(3) - t.grad_log_sum_exp;
  const auto grad_scores =
      (p * (g.matmul(v.transpose(2, 3)) - delta.unsqueeze(3)) * c.scale).masked_fill(hidden, 0);
  return {{out, log_sum_exp},
          {grad_scores.matmul(k), per_key_head(grad_scores.transpose(2, 3).matmul(q), c.key_heads),
           per_key_head(p.transpose(2, 3).matmul(g), c.key_heads)}};
}

/// Near in the norm of the difference: rounding of low precision inputs and outputs, and of float32
/// sums; what is written may not be off by more than that.
::testing::AssertionResult near(const at::Tensor& actual, const at::Tensor& expected,
                                at::ScalarType dtype) {
  if (actual.sizes() != expected.sizes()) {
    return ::testing::AssertionFailure() << actual.sizes() << " instead of " << expected.sizes();
  }
  const double error = (actual.to(at::kDouble) - expected).abs().sum().item<double>();
  const double size = expected.abs().sum().item<double>();
  const auto limit = testing::tolerance(dtype);
  const double allowed =
      limit.relative * size + limit.absolute * static_cast<double>(expected.numel());
  if (error <= allowed) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "off by " << error << " of " << size;
}

/// One instruction set of this machine.
class ShiftedAttentionTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = kernels::shifted_kernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
    at::manual_seed(1);
  }

  AttentionOutput forward(const Case& c, const Tensors& t) const {
    return attention::shifted_forward(t.q, t.k, t.v, c.shifts, c.scale, kernels_);
  }
  AttentionInputGradients backward(const Case& c, const Tensors& t,
                                   const AttentionOutput& saved) const {
    return attention::shifted_backward(t.q, t.k, t.v, c.shifts, c.scale,
                                       {saved.out, saved.log_sum_exp, t.grad_out,
                                        t.grad_log_sum_exp.to(saved.log_sum_exp.scalar_type())},
                                       kernels_);
  }

  void check(const Case& c) const {
    SCOPED_TRACE(::testing::Message() << c);
    const Tensors t(c);
    const auto output = forward(c, t);
    const auto gradients = backward(c, t, output);
    const auto [wanted, wanted_gradients] = expected(c, t);
    EXPECT_EQ(output.out.scalar_type(), c.dtype);
    EXPECT_TRUE(near(output.out, wanted.out, c.dtype));
    const auto sums = c.dtype == at::kDouble ? at::kDouble : at::kFloat;
    EXPECT_EQ(output.log_sum_exp.scalar_type(), sums);
    EXPECT_TRUE(testing::close(output.log_sum_exp, wanted.log_sum_exp));
    EXPECT_TRUE(near(gradients.query, wanted_gradients.query, c.dtype));
    EXPECT_TRUE(near(gradients.key, wanted_gradients.key, c.dtype));
    EXPECT_TRUE(near(gradients.value, wanted_gradients.value, c.dtype));
  }

  const kernels::ShiftedKernels* kernels_ = nullptr;
};

TEST_P(ShiftedAttentionTest, EqualsTheWholeMatrixForEveryWidth) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    for (const int64_t dim : {1, 16, 17, 48, 64, 80, 100, 128, 256}) {
      check({.head_dim = dim, .value_dim = dim, .dtype = dtype});
    }
    check({.head_dim = 24, .value_dim = 72, .dtype = dtype});
    check({.head_dim = 128, .value_dim = 1, .dtype = dtype});
  }
}

TEST_P(ShiftedAttentionTest, EqualsTheWholeMatrixForEveryLength) {
  for (const int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200}) {
    check({.queries = n, .keys = n, .dtype = at::kFloat});
    check({.queries = n, .keys = n});
  }
}

TEST_P(ShiftedAttentionTest, KnowsLowPrecision) {
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    for (const int64_t dim : {5, 64}) {
      check({.queries = 150, .keys = 150, .head_dim = dim, .value_dim = dim, .dtype = dtype});
    }
  }
}

TEST_P(ShiftedAttentionTest, KnowsUnequalLengthsAndKeysAfterTheQuery) {
  // As bottom-right alignment gives them, top-left, and a few that leave queries without keys.
  check({.queries = 30, .keys = 100, .shifts = {70, 69, 68, 66, 62, 54, 38, 6}});
  check({.queries = 100, .keys = 30});
  check({.queries = 100, .keys = 30, .shifts = {-70, -71, -72, -74}});
  check({.queries = 65, .keys = 65, .shifts = {40, 3, 0, -3, -40}});
  check({.queries = 65, .keys = 65, .shifts = {64}});
  check({.queries = 10, .keys = 300, .shifts = {290, 280, 0}, .dtype = at::kFloat});
}

TEST_P(ShiftedAttentionTest, SharesKeysAmongHeads) {
  check({.batch = 2, .heads = 8, .key_heads = 2, .queries = 100, .keys = 100});
  check({.heads = 6, .key_heads = 1, .head_dim = 20, .dtype = at::kFloat});
  check({.batch = 3, .heads = 70, .key_heads = 35, .queries = 33, .keys = 33, .head_dim = 4});
}

TEST_P(ShiftedAttentionTest, TakesNegativeScalesAndManyShifts) {
  check({.scale = -0.7});
  KeyShifts shifts;
  for (int64_t d = 0; d < kernels::kMostShifts; ++d) shifts.push_back(-3 * d);
  check({.queries = 150, .keys = 150, .shifts = shifts, .dtype = at::kFloat});
}

TEST_P(ShiftedAttentionTest, ReadsAnyStrides) {
  const Case c{.batch = 2, .heads = 3, .key_heads = 3, .dtype = at::kFloat};
  const Tensors t(c);
  const auto plain = forward(c, t);
  const auto gradients = backward(c, t, plain);
  Tensors strided = t;
  strided.q = t.q.transpose(1, 2).contiguous().transpose(1, 2);
  strided.k = t.k.transpose(2, 3).contiguous().transpose(2, 3);
  strided.v = t.v.permute({3, 1, 0, 2}).contiguous().permute({2, 1, 3, 0});
  strided.grad_out = t.grad_out[0][0][0].expand(t.grad_out.sizes());
  const auto output = forward(c, strided);
  EXPECT_TRUE(testing::same(output.out, plain.out));
  EXPECT_TRUE(testing::same(output.log_sum_exp, plain.log_sum_exp));
  Tensors expanded = t;
  expanded.grad_out = strided.grad_out.contiguous();
  const auto actual = backward(c, strided, output), wanted = backward(c, expanded, plain);
  EXPECT_TRUE(testing::same(actual.query, wanted.query));
  EXPECT_TRUE(testing::same(actual.key, wanted.key));
  EXPECT_TRUE(testing::same(actual.value, wanted.value));
}

TEST_P(ShiftedAttentionTest, GivesTheSameBitsForAnyNumberOfThreads) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Case c{.heads = 4, .key_heads = 2, .queries = 700, .keys = 700, .dtype = dtype};
    const Tensors t(c);
    const int threads = at::get_num_threads();
    at::set_num_threads(1);
    const auto one = forward(c, t);
    const auto one_backward = backward(c, t, one);
    at::set_num_threads(4);
    const auto four = forward(c, t);
    const auto four_backward = backward(c, t, four);
    at::set_num_threads(threads);
    EXPECT_TRUE(testing::same(one.out, four.out));
    EXPECT_TRUE(testing::same(one.log_sum_exp, four.log_sum_exp));
    EXPECT_TRUE(testing::same(one_backward.query, four_backward.query));
    EXPECT_TRUE(testing::same(one_backward.key, four_backward.key));
    EXPECT_TRUE(testing::same(one_backward.value, four_backward.value));
  }
}

TEST_P(ShiftedAttentionTest, ReadsNoKeyThatIsNotSeen) {
  const Case c{.queries = 100, .keys = 100, .shifts = {-20, -40}, .dtype = at::kFloat};
  const Tensors t(c);
  const auto clean = forward(c, t);
  const auto clean_backward = backward(c, t, clean);
  t.k.narrow(2, 80, 20).fill_(NAN);  // no query is 20 after these
  t.v.narrow(2, 80, 20).fill_(NAN);
  const auto output = forward(c, t);
  const auto gradients = backward(c, t, output);
  EXPECT_TRUE(testing::same(output.out, clean.out));
  EXPECT_TRUE(testing::same(gradients.query, clean_backward.query));
  EXPECT_TRUE(testing::same(gradients.key, clean_backward.key));
  EXPECT_TRUE(testing::same(gradients.value, clean_backward.value));
}

TEST_P(ShiftedAttentionTest, KeepsABadQueryToItsRow) {
  for (const float bad : {NAN, INFINITY}) {
    const Case c{.heads = 1, .key_heads = 1, .dtype = at::kFloat};
    const Tensors t(c);
    const auto clean = forward(c, t);
    t.q[0][0][33][5] = bad;
    const auto output = forward(c, t);
    EXPECT_TRUE(output.out[0][0][33].isnan().all().item<bool>());
    EXPECT_TRUE(testing::same(output.out.narrow(2, 0, 33), clean.out.narrow(2, 0, 33)));
    EXPECT_TRUE(testing::same(output.out.narrow(2, 34, 36), clean.out.narrow(2, 34, 36)));
  }
}

TEST_P(ShiftedAttentionTest, GivesZeroToQueriesWithoutKeys) {
  const Case c{.queries = 100, .keys = 100, .shifts = {-90}, .dtype = at::kFloat};
  const Tensors t(c);
  const auto output = forward(c, t);
  EXPECT_TRUE(testing::same(output.out.narrow(2, 0, 90), at::zeros({1, 2, 90, 16})));
  EXPECT_TRUE(testing::same(output.log_sum_exp.narrow(2, 0, 90), at::full({1, 2, 90}, -INFINITY)));
  const auto gradients = backward(c, t, output);
  EXPECT_TRUE(gradients.query.isfinite().all().item<bool>());
  EXPECT_TRUE(testing::same(gradients.key.narrow(2, 10, 90), at::zeros({1, 2, 90, 16})));
}

TEST_P(ShiftedAttentionTest, StaysRightFarFromZero) {
  // Scores of some hundreds, whole numbers so that float32 holds them.
  const Case c{.dtype = at::kFloat, .scale = 20};
  const Tensors t(c);
  t.q.round_();
  t.k.round_();
  const auto output = forward(c, t);
  EXPECT_TRUE(testing::close(output.out, expected(c, t).output.out.to(at::kFloat)));
}

TEST_P(ShiftedAttentionTest, EqualsItselfOnShorterSequencesWhereResultsGoAroundTheCaches) {
  // 8 MB a head and more. The last queries see the same keys if the sequence begins later.
  const Case c{.heads = 1,
               .key_heads = 1,
               .queries = 33'000,
               .keys = 33'000,
               .head_dim = 64,
               .value_dim = 64,
               .shifts = {0, -1, -5, -100},
               .dtype = at::kFloat};
  const Tensors t(c);
  const auto output = forward(c, t);
  const auto gradients = backward(c, t, output);
  const int64_t length = 1'100, first = c.queries - length;
  Tensors tail = t;
  for (auto* x : {&tail.q, &tail.k, &tail.v, &tail.grad_out, &tail.grad_log_sum_exp}) {
    *x = x->narrow(2, first, length);
  }
  const auto end = forward(c, tail);
  const auto end_gradients = backward(c, tail, end);
  // Of the tail, the first 100 queries lack keys that they see in the whole.
  const auto last = [](const at::Tensor& x) { return x.narrow(2, x.size(2) - 1'000, 1'000); };
  EXPECT_TRUE(testing::same(last(output.out), last(end.out)));
  EXPECT_TRUE(testing::same(last(output.log_sum_exp), last(end.log_sum_exp)));
  EXPECT_TRUE(testing::same(last(gradients.query), last(end_gradients.query)));
  EXPECT_TRUE(testing::same(last(gradients.key), last(end_gradients.key)));
  EXPECT_TRUE(testing::same(last(gradients.value), last(end_gradients.value)));
}

TEST_P(ShiftedAttentionTest, TakesEmptySequences) {
  for (const Case& c : {Case{.queries = 0, .keys = 0}, Case{.queries = 5, .keys = 0},
                        Case{.queries = 0, .keys = 5}, Case{.batch = 0}}) {
    const Tensors t(c);
    const auto output = forward(c, t);
    EXPECT_TRUE(testing::same(output.out, at::zeros_like(output.out)));
    const auto gradients = backward(c, t, output);
    EXPECT_TRUE(testing::same(gradients.query, at::zeros_like(t.q)));
    EXPECT_TRUE(testing::same(gradients.key, at::zeros_like(t.k)));
  }
}

INSTANTIATE_TEST_SUITE_P(AllSets, ShiftedAttentionTest,
                         ::testing::Values("portable", "avx2", "avx512"));

}  // namespace
}  // namespace torchlore
