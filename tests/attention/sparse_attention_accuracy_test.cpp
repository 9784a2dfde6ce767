// How exact the results are, and what must never be seen in them.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "attention_oracle.hpp"
#include "support/tolerance.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using testing::AttentionAnswer;
using testing::AttentionCase;
using testing::same;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

AttentionAnswer sparse(const AttentionCase& c, const BlockLayout& layout, const Tensor& upstream,
                       const SparseAttentionOptions& options = {}) {
  auto leaf = c;
  for (auto* x : {&leaf.query, &leaf.key, &leaf.value}) *x = x->detach().requires_grad_();
  const auto [output, sums] =
      sparse_attention_with_lse(leaf.query, leaf.key, leaf.value, layout, options);
  const auto grads = torch::autograd::grad({output}, {leaf.query, leaf.key, leaf.value},
                                           {upstream.to(output.scalar_type())});
  return {output.detach(), sums.detach(), grads[0], grads[1], grads[2]};
}

double largest(const Tensor& a, const Tensor& b) {
  return (a.to(at::kDouble) - b).abs().max().item<double>();
}
double mean_square(const Tensor& a, const Tensor& b) {
  return std::sqrt((a.to(at::kDouble) - b).square().mean().item<double>());
}

/// One unit in the last place of the largest value. Where all are 0, a single score's gradient, they are
/// the difference of two equal numbers of some tens.
double last_place(const Tensor& x, at::ScalarType dtype) {
  const int digits = dtype == at::kBFloat16 ? 7 : dtype == at::kHalf ? 10 : 23;
  const double most = x.abs().max().item<double>();
  return std::ldexp(1, (most == 0 ? 5 : std::ilogb(most)) - digits);
}

/// Holds the error against float64 to that of plain attention in the same dtype.
void expect_exact(const char* name, at::ScalarType dtype, const Tensor& ours, const Tensor& eager,
                  const Tensor& golden) {
  SCOPED_TRACE(name);
  const double own = largest(ours, golden), other = largest(eager, golden);
  if (dtype == at::kFloat) {
    // The floor is for sizes at which plain attention happens to be exact.
    EXPECT_LE(own, 5 * other + last_place(golden, dtype));
    return;
  }
  EXPECT_LE(own, 1.1 * other + last_place(golden, dtype));
  if (golden.numel() > 1000) {
    EXPECT_LE(mean_square(ours, golden), mean_square(eager, golden));
  }
}

/// A mask, and what it shows by the arithmetic of whole tensors.
struct Mask {
  MaskSpec spec;
  Tensor (*visible)(const Tensor& query, const Tensor& key);
};

void expect_exact(at::ScalarType dtype, int64_t n, const Mask& mask) {
  SCOPED_TRACE(std::string(at::toString(dtype)) + ", " + std::to_string(n) + ", " +
               to_string(mask.spec));
  const auto numbers = [&] { return at::randn({1, 2, n, 64}, at::kDouble).to(dtype); };
  const auto place = at::arange(n, at::kLong);
  const AttentionCase c{numbers(), numbers(), numbers(),
                        mask.visible(place.unsqueeze(1), place).expand({1, 1, n, n})};
  const auto upstream = numbers();
  const auto ours = sparse(c, BlockLayout::build(mask.spec, n, n), upstream);
  const auto eager = testing::eager(c, upstream);
  const auto golden = testing::golden(c, upstream);
  expect_exact("output", dtype, ours.output, eager.output, golden.output);
  expect_exact("gradient of query", dtype, ours.query, eager.query, golden.query);
  expect_exact("gradient of key", dtype, ours.key, eager.key, golden.key);
  expect_exact("gradient of value", dtype, ours.value, eager.value, golden.value);
}

class SparseAttentionAccuracy : public ::testing::Test {
 protected:
  // So small that threads would only wait for each other.
  static void SetUpTestSuite() { at::set_num_threads(1); }
};

TEST_F(SparseAttentionAccuracy, IsThatOfPlainAttention) {
  const Mask all{mask::all(), [](const Tensor& q, const Tensor& k) { return q + k >= 0; }};
  const Mask causal{mask::causal(), [](const Tensor& q, const Tensor& k) { return k <= q; }};
  const Mask some{mask::causal() & (mask::window(100) | mask::sinks(5) | mask::strided(50)),
                  [](const Tensor& q, const Tensor& k) {
                    const auto shown = at::logical_or(q - k < 100, k < 5);
                    return at::logical_and(k <= q, at::logical_or(shown, k.remainder(50) == 0));
                  }};
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    // Plain attention in float16 takes seconds.
    for (const int64_t n : {1, 65, dtype == at::kHalf ? 300 : 1023}) {
      for (const auto& mask : {all, causal, some}) expect_exact(dtype, n, mask);
    }
  }
}

/// Windows of 40: the first 128 keys are out of sight from query 168 on, and the tile of keys from
/// 128 to 191 is seen in parts.
struct Poisoned {
  int64_t n = 320;
  MaskSpec spec = mask::causal() & mask::window(40);
  BlockLayout layout = BlockLayout::build(spec, n, n);
  AttentionCase c;
  Tensor upstream;

  explicit Poisoned(std::tuple<at::ScalarType, int64_t> dtype_and_dim) {
    const auto [dtype, dim] = dtype_and_dim;
    const auto numbers = [&, type = dtype, d = dim] {
      return at::randn({1, 2, n, d}, at::kDouble).to(type);
    };
    c = {numbers(), numbers(), numbers(), testing::brute_force(spec, 1, 1, n, n)};
    upstream = numbers();
  }
};

/// The dtype, and the head dimension: 300 is more than the compiled kernels take.
class SparseAttentionPoison : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t>> {
};

TEST_P(SparseAttentionPoison, InSkippedKeysAndValuesIsNeverSeen) {
  Poisoned p(GetParam());
  const auto clean = sparse(p.c, p.layout, p.upstream);
  p.c.key.narrow(2, 0, 100).fill_(kNaN);
  p.c.value.narrow(2, 0, 100).fill_(kNaN);
  const auto result = sparse(p.c, p.layout, p.upstream);
  // Queries from 139 on see none of the first 100 keys, those from 192 on none of their tiles.
  const int64_t first = 192;
  EXPECT_TRUE(same(result.output.narrow(2, first, p.n - first),
                   clean.output.narrow(2, first, p.n - first)));
  EXPECT_TRUE(
      same(result.query.narrow(2, first, p.n - first), clean.query.narrow(2, first, p.n - first)));
  EXPECT_TRUE(
      same(result.key.narrow(2, first, p.n - first), clean.key.narrow(2, first, p.n - first)));
  EXPECT_TRUE(
      same(result.value.narrow(2, first, p.n - first), clean.value.narrow(2, first, p.n - first)));
  EXPECT_TRUE(result.output.narrow(2, 0, 100).isnan().all().item<bool>());
}

TEST_P(SparseAttentionPoison, InKeysOfAPartialTileThatNobodySeesIsNeverSeen) {
  Poisoned p(GetParam());
  // Nobody sees every fifth key, which all tiles have some of.
  p.spec = p.spec & !mask::strided(5);
  p.layout = BlockLayout::build(p.spec, p.n, p.n);
  const auto unseen = at::arange(0, p.n, 5, at::kLong);
  const auto clean = sparse(p.c, p.layout, p.upstream);
  p.c.key.index_fill_(2, unseen, kNaN);
  p.c.value.index_fill_(2, unseen, kNaN);
  const auto result = sparse(p.c, p.layout, p.upstream);
  EXPECT_TRUE(same(result.output, clean.output));
  EXPECT_TRUE(same(result.query, clean.query));
  EXPECT_TRUE(same(result.key, clean.key));
  EXPECT_TRUE(same(result.value, clean.value));
  EXPECT_TRUE(result.key.index_select(2, unseen).eq(0).all().item<bool>());
}

TEST_P(SparseAttentionPoison, InAQueryStaysInItsRow) {
  Poisoned p(GetParam());
  const auto clean = sparse(p.c, p.layout, p.upstream);
  p.c.query.select(2, 200).fill_(kNaN);
  const auto result = sparse(p.c, p.layout, p.upstream);
  const auto rows = result.output.isnan().all(-1);
  EXPECT_TRUE(rows.select(2, 200).all().item<bool>());
  EXPECT_EQ(result.output.isnan().sum().item<int64_t>(), 2 * p.c.query.size(3));
  EXPECT_EQ(result.query.isnan().sum().item<int64_t>(), 2 * p.c.query.size(3));
  // The keys that it sees get NaN; the tile before those is untouched.
  EXPECT_TRUE(same(result.key.narrow(2, 0, 128), clean.key.narrow(2, 0, 128)));
  EXPECT_TRUE(result.key.select(2, 200).isnan().all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, SparseAttentionPoison,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16, at::kHalf,
                                                              at::kDouble),
                                            ::testing::Values(64, 300)),
                         [](const auto& chosen) {
                           return std::string(at::toString(std::get<0>(chosen.param))) +
                                  std::to_string(std::get<1>(chosen.param));
                         });

TEST_F(SparseAttentionAccuracy, DropsTheShareOfWeightsThatWasAskedFor) {
  const int64_t n = 256;
  const auto layout = BlockLayout::build(mask::all(), n, n);
  const auto zero = at::zeros({1, 2, n, 8}), one = at::ones({1, 2, n, 1});
  const auto out = sparse_attention(zero, zero, one, layout, {.dropout = 0.3});
  // Each row is the mean of n numbers that are 0 or 1 / 0.7.
  EXPECT_NEAR(out.mean().item<double>(), 1, 0.01);
  EXPECT_NEAR(out.std().item<double>(), std::sqrt(0.3 / 0.7 / static_cast<double>(n)), 0.004);
}

TEST_F(SparseAttentionAccuracy, DropsTheSameWeightsWhateverTheLayout) {
  const int64_t n = 200;
  const auto numbers = [&] { return at::randn({2, 2, n, 8}, at::kDouble); };
  const auto q = numbers(), k = numbers(), v = numbers();
  const auto run = [&](const MaskSpec& spec, int64_t block) {
    at::manual_seed(11);
    return sparse_attention(q, k, v, BlockLayout::build(spec, n, n, {.block_size = block}),
                            {.dropout = 0.5});
  };
  // A mask that hides nothing, in partial tiles.
  const auto all = mask::predicate([](int64_t, int64_t, const Where&) { return true; });
  EXPECT_TRUE(testing::close(run(mask::all(), 64), run(all, 32)));
  at::manual_seed(12);
  EXPECT_FALSE(at::allclose(
      run(mask::all(), 64),
      sparse_attention(q, k, v, BlockLayout::build(mask::all(), n, n), {.dropout = 0.5})));
}

TEST_F(SparseAttentionAccuracy, DrawsOnceFromItsGenerator) {
  const auto x = at::randn({1, 1, 64, 8});
  const auto layout = BlockLayout::build(mask::all(), 64, 64);
  at::manual_seed(3);
  const auto without = at::rand({1});
  at::manual_seed(3);
  sparse_attention(x, x, x, layout);
  EXPECT_TRUE(same(at::rand({1}), without));
  at::manual_seed(3);
  const auto first = sparse_attention(x, x, x, layout, {.dropout = 0.5});
  EXPECT_FALSE(at::equal(at::rand({1}), without));
  at::manual_seed(3);
  EXPECT_TRUE(same(sparse_attention(x, x, x, layout, {.dropout = 0.5}), first));
  EXPECT_FALSE(at::equal(sparse_attention(x, x, x, layout, {.dropout = 0.5}), first));
}

}  // namespace
}  // namespace torchlore
