#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>

#include "kernel_case.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using kernels::Passes;
using testing::BlockAttention;
using testing::eager;
using testing::KernelCase;
using testing::KernelResult;
using testing::random_case;

double largest(const at::Tensor& t) { return t.numel() == 0 ? 0 : t.abs().max().item<double>(); }
double rms(const at::Tensor& t) {
  return t.numel() == 0 ? 0 : std::sqrt(t.square().mean().item<double>());
}

/// Distance of neighbouring numbers of a dtype at 1.
double epsilon(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return 0x1p-10;
    case at::kBFloat16:
      return 0x1p-7;
    case at::kFloat:
      return 0x1p-23;
    default:
      return 0x1p-52;
  }
}

/// Against what is right: the kernels' error is held against that of eager attention in the same dtype. The
/// error of a few numbers is a matter of luck: those have the dtype's tolerance, and so has float64, in which
/// what is right is known no better.
::testing::AssertionResult as_good(const at::Tensor& ours, const at::Tensor& plain,
                                   const at::Tensor& right) {
  const auto dtype = ours.scalar_type();
  const auto error = ours.to(at::kDouble) - right, allowed = plain.to(at::kDouble) - right;
  const double ulp = epsilon(dtype) * largest(right);
  const bool low = dtype == at::kHalf || dtype == at::kBFloat16;
  const double most = (low ? 1.1 * largest(allowed) : 5 * largest(allowed)) + ulp;
  const double typical = (low ? rms(allowed) : 5 * rms(allowed)) + ulp / (low ? 16 : 1);
  const bool few = right.numel() < 4096 || dtype == at::kDouble;
  if (few && largest(error) <= testing::tolerance(dtype).relative * largest(right)) {
    return ::testing::AssertionSuccess();
  }
  if (largest(error) <= most && rms(error) <= typical) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "largest error " << largest(error) << " (eager " << largest(allowed) << "), rms "
         << rms(error) << " (eager " << rms(allowed) << ")";
}

class BlockKernelsTest : public ::testing::TestWithParam<std::tuple<const char*, at::ScalarType>> {
 protected:
  void SetUp() override {
    name = std::get<0>(GetParam());
    dtype = std::get<1>(GetParam());
    k = kernels::block_kernels(name);
    if (k == nullptr) GTEST_SKIP() << "this machine has no " << name;
    at::manual_seed(1);
    at::set_num_threads(1);
  }

  /// Compares all five results with float64, for both kinds of passes.
  void check(const KernelCase& wide) {
    const KernelCase c = wide.to(dtype);
    const auto right = eager(c.to(at::kDouble)), plain = eager(c);
    BlockAttention block(k);
    for (const auto passes : {Passes::one, Passes::two}) {
      SCOPED_TRACE(passes == Passes::one ? "one pass" : "two passes");
      const auto ours = block.run(c, passes);
      EXPECT_TRUE(as_good(ours.out, plain.out, right.out)) << "out";
      EXPECT_TRUE(lse_close(ours.log_sum_exp, right.log_sum_exp));
      EXPECT_TRUE(as_good(ours.grad_q, plain.grad_q, right.grad_q)) << "dQ";
      EXPECT_TRUE(as_good(ours.grad_k, plain.grad_k, right.grad_k)) << "dK";
      EXPECT_TRUE(as_good(ours.grad_v, plain.grad_v, right.grad_v)) << "dV";
      EXPECT_EQ(block.forward.executed_tiles, block.tiles_of_layouts());
      EXPECT_EQ(block.backward_counts.executed_tiles,
                block.tiles_of_layouts() * (passes == Passes::two ? 2 : 1));
    }
  }

  ::testing::AssertionResult lse_close(const at::Tensor& ours, const at::Tensor& right) const {
    const double limit = dtype == at::kDouble ? 1e-12 : 1e-5;
    const auto wide = ours.to(at::kDouble);
    if (at::allclose(wide, right, limit, limit)) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure()
           << "log-sum-exp off by " << largest((wide - right).nan_to_num());
  }

  const char* name = nullptr;
  at::ScalarType dtype = at::kFloat;
  const kernels::BlockKernels* k = nullptr;
};

at::Tensor causal(int64_t queries, int64_t keys) {
  return at::ones({queries, keys}, at::kBool).tril(keys - queries);
}

TEST_P(BlockKernelsTest, EqualsEagerAttentionForWholeTiles) {
  auto c = random_case(1, 2, 2, 128, 128, 64, 64);
  check(c);
  c.mask = causal(128, 128);
  check(c);
}

TEST_P(BlockKernelsTest, TakesAnyLengthAndDim) {
  for (const int64_t n : {1, 65, 200}) {
    for (const int64_t dim : {1, 3, 16, 17, 32, 64, 80, 128, 256}) {
      SCOPED_TRACE(::testing::Message() << n << " rows of " << dim);
      auto c = random_case(1, 1, 1, n, n + 7, dim, dim == 80 ? 33 : dim);
      c.mask = causal(n, n + 7);
      check(c);
    }
  }
}

TEST_P(BlockKernelsTest, TakesTilesOf32) {
  auto c = random_case(1, 2, 1, 100, 130, 64, 64);
  c.tile = 32;
  c.mask = at::rand({100, 130}) < 0.1;
  check(c);
}

TEST_P(BlockKernelsTest, SumsOverTheHeadsOfAGroup) {
  auto c = random_case(2, 6, 2, 70, 70, 32, 48);
  c.mask = at::rand({2, 6, 70, 70}) < 0.5;
  check(c);
}

TEST_P(BlockKernelsTest, GivesNothingToQueriesWithoutKeys) {
  auto c = random_case(1, 2, 2, 150, 150, 64, 64);
  c.mask = at::rand({150, 150}) < 0.3;
  c.mask.slice(0, 10, 20).fill_(false);
  c.mask.slice(0, 64, 128).fill_(false);  // a tile row without tiles
  c.mask.slice(1, 64, 128).fill_(false);  // and a column
  check(c);
  const auto ours = BlockAttention(k).run(c.to(dtype));
  EXPECT_EQ(largest(ours.out.slice(2, 64, 128)), 0);
  EXPECT_EQ(largest(ours.grad_q.slice(2, 64, 128)), 0);
  EXPECT_EQ(largest(ours.grad_k.slice(2, 64, 128)), 0);
  EXPECT_TRUE(ours.log_sum_exp.slice(2, 64, 128).eq(-INFINITY).all().item<bool>());
}

TEST_P(BlockKernelsTest, ScalesByAnyNumber) {
  for (const double scale : {-0.7, 0.0, 1e-3, 2.5}) {
    SCOPED_TRACE(scale);
    auto c = random_case(1, 2, 2, 128, 128, 32, 32);
    c.scale = scale;
    check(c);
  }
}

TEST_P(BlockKernelsTest, FollowsScoresThatGrow) {
  auto c = random_case(1, 2, 2, 256, 256, 32, 32);
  c.k *= at::linspace(0.1, 20, 256, at::kDouble).unsqueeze(1);  // from tile to tile, past 2^8
  c.mask = causal(256, 256);
  check(c);
}

TEST_P(BlockKernelsTest, AddsABias) {
  auto c = random_case(2, 2, 1, 90, 70, 32, 32);
  c.mask = at::rand({90, 70}) < 0.7;
  c.bias = at::randn({1, 2, 90, 70});
  c.bias.masked_fill_(at::rand({1, 2, 90, 70}) < 0.1, -INFINITY);
  c.bias.select(2, 5).fill_(-INFINITY);
  check(c);
  c.bias = at::randn({1, 1, 1, 70});  // broadcast over the queries
  c.mask.fill_(true);
  check(c);
}

TEST_P(BlockKernelsTest, AddsAlibi) {
  auto c = random_case(1, 4, 2, 90, 150, 32, 32);
  c.mask = causal(90, 150);
  c.slopes = at::tensor({0.5F, 0.25F, -0.1F, 0.0F});
  c.query_offset = 60;
  check(c);
  c.mask = at::ones({90, 150}, at::kBool);
  c.scale = -0.2;
  check(c);
}

TEST_P(BlockKernelsTest, DropsTheWeightsOfItsNumbers) {
  for (const int64_t tile : {32, 64}) {
    auto c = random_case(2, 2, 1, 101, 90, 32, 32);
    c.mask = at::rand({101, 90}) < 0.6;
    c.mask.slice(0, 0, 64).fill_(true);
    c.dropout = 0.3;
    c.tile = tile;
    check(c);
  }
}

TEST_P(BlockKernelsTest, TakesGradientsOfTheLogSumExp) {
  auto c = random_case(1, 2, 2, 80, 80, 32, 32);
  c.mask = causal(80, 80);
  c.grad_log_sum_exp = at::randn({1, 2, 80}, at::kDouble).to(dtype);
  check(c);
}

TEST_P(BlockKernelsTest, ReadsRowsByTheirStrides) {
  const auto c = random_case(2, 3, 3, 70, 66, 24, 40).to(dtype);
  const auto expected = BlockAttention(k).run(c);
  auto strided = c;
  for (auto* t : {&strided.q, &strided.k, &strided.v, &strided.grad_out}) {
    // [batch, rows, heads, dim + 3], as projections leave it, with rows that start anywhere
    auto room = at::full({t->size(0), t->size(2), t->size(1), t->size(3) + 3}, NAN, t->options());
    auto view = room.narrow(3, 1, t->size(3)).transpose(1, 2);
    view.copy_(*t);
    *t = view;
  }
  for (const auto passes : {Passes::one, Passes::two}) {
    const auto ours = BlockAttention(k).run(strided, passes);
    EXPECT_TRUE(testing::same(ours.out, expected.out));
    EXPECT_TRUE(testing::same(ours.grad_q, expected.grad_q));
    EXPECT_TRUE(testing::same(ours.grad_k, expected.grad_k));
    EXPECT_TRUE(testing::same(ours.grad_v, expected.grad_v));
  }
}

TEST_P(BlockKernelsTest, GivesTheSameBitsForAnyThreadsAndPasses) {
  auto c = random_case(1, 4, 2, 300, 300, 48, 48);
  c.mask = at::rand({300, 300}) < 0.2;
  c.dropout = 0.1;
  c = c.to(dtype);
  BlockAttention block(k);
  const auto expected = block.run(c, Passes::one);
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    for (const auto passes : {Passes::one, Passes::two, Passes::automatic}) {
      const auto ours = block.run(c, passes);
      EXPECT_TRUE(testing::same(ours.out, expected.out));
      EXPECT_TRUE(testing::same(ours.grad_q, expected.grad_q));
      EXPECT_TRUE(testing::same(ours.grad_k, expected.grad_k));
      EXPECT_TRUE(testing::same(ours.grad_v, expected.grad_v));
    }
  }
  at::set_num_threads(1);
}

TEST_P(BlockKernelsTest, CutsFewHeadsIntoParts) {
  auto c = random_case(1, 2, 1, 400, 300, 32, 20);
  c.mask = causal(400, 300);
  at::set_num_threads(3);
  check(c);
  at::set_num_threads(1);
}

/// Rows of K and V, or of Q and dO, that hold what is not finite.
struct Poison {
  std::vector<int64_t> keys = {};
  std::vector<int64_t> queries = {};
  bool in_keys = true;  ///< false: in values alone

  static at::Tensor marked(const std::vector<int64_t>& rows, int64_t count) {
    auto mark = at::zeros({count}, at::kBool);
    for (const int64_t row : rows) mark[row].fill_(true);
    return mark;
  }

  KernelCase applied(KernelCase c) const {
    for (auto* t : {&c.q, &c.k, &c.v, &c.grad_out}) *t = t->clone();
    for (const int64_t row : keys) {
      if (in_keys) c.k.select(2, row).fill_(NAN);
      c.v.select(2, row).fill_(row % 2 == 0 ? INFINITY : NAN);
    }
    for (const int64_t row : queries) {
      c.q.select(2, row).fill_(NAN);
      c.grad_out.select(2, row).fill_(NAN);
    }
    return c;
  }

  /// Queries that see a bad key, or are bad; and keys that are seen by one of these.
  at::Tensor touched_queries(const at::Tensor& mask) const {
    return mask.logical_and(marked(keys, mask.size(1)))
        .any(1)
        .logical_or(marked(queries, mask.size(0)));
  }
  at::Tensor touched_keys(const at::Tensor& mask) const {
    return mask.logical_and(touched_queries(mask).unsqueeze(1)).any(0);
  }
};

/// What was touched holds no finite number, and all else is as it was.
::testing::AssertionResult spread(const at::Tensor& ours, const at::Tensor& clean,
                                  const at::Tensor& touched) {
  const auto finite = ours.isfinite().transpose(1, 2).reshape({ours.size(2), -1});
  if (finite.any(1).logical_and(touched).any().item<bool>()) {
    return ::testing::AssertionFailure() << "finite numbers where there should be none";
  }
  const auto rest = touched.logical_not().nonzero().squeeze(1);
  if (rest.numel() < 10) return ::testing::AssertionFailure() << "too little left to compare";
  return testing::same(ours.index_select(2, rest), clean.index_select(2, rest));
}

class PoisonedKernelsTest : public BlockKernelsTest {
 protected:
  /// Half of the pairs of a partial tile and more are visible, so that every tile has both kinds.
  KernelCase half_visible() {
    auto c = random_case(1, 2, 1, 150, 150, 40, 40);
    c.mask = at::rand({150, 150}) < 0.5;
    return c;
  }

  void check_spread(const KernelCase& wide, const Poison& poison) {
    const auto c = wide.to(dtype);
    const auto clean = BlockAttention(k).run(c, Passes::one);
    const auto queries = poison.touched_queries(c.mask), keys = poison.touched_keys(c.mask);
    for (const auto passes : {Passes::one, Passes::two}) {
      SCOPED_TRACE(passes == Passes::one ? "one pass" : "two passes");
      const auto ours = BlockAttention(k).run(poison.applied(c), passes);
      EXPECT_TRUE(spread(ours.out, clean.out, queries)) << "out";
      EXPECT_TRUE(spread(ours.grad_q, clean.grad_q, queries)) << "dQ";
      EXPECT_TRUE(spread(ours.grad_k, clean.grad_k, keys)) << "dK";
      if (!poison.in_keys) continue;  // dV needs no values
      EXPECT_TRUE(spread(ours.grad_v, clean.grad_v, keys)) << "dV";
    }
  }
};

TEST_P(PoisonedKernelsTest, BadKeysReachTheQueriesThatSeeThem) {
  auto c = half_visible();
  const Poison poison{.keys = {3, 70, 149}};
  for (const int64_t row : poison.keys) c.mask.slice(0, 0, 147).select(1, row).fill_(false);
  c.mask.slice(0, 147, 150)
      .slice(1, 10, 140)
      .fill_(false);  // they see few keys, so that some stay clean
  c.mask.slice(0, 147, 150).select(1, 149).fill_(true);
  check_spread(c, poison);
}

TEST_P(PoisonedKernelsTest, BadValuesReachTheQueriesThatSeeThem) {
  auto c = half_visible();
  const Poison poison{.keys = {3, 70, 149}, .in_keys = false};
  for (const int64_t row : poison.keys) c.mask.slice(0, 0, 147).select(1, row).fill_(false);
  c.mask.slice(0, 147, 150).slice(1, 10, 140).fill_(false);
  c.mask.slice(0, 147, 150).select(1, 149).fill_(true);
  check_spread(c, poison);
}

TEST_P(PoisonedKernelsTest, BadQueriesReachTheKeysThatTheySee) {
  auto c = half_visible();
  const Poison poison{.queries = {5, 66, 149}};
  for (const int64_t row : poison.queries) c.mask.slice(1, 4, 140).select(0, row).fill_(false);
  c.mask.select(1, 0).fill_(true);
  check_spread(c, poison);
}

const auto kEverySet =
    ::testing::Combine(::testing::Values("portable", "avx2", "avx512", "avx512bf16"),
                       ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));
std::string name_of(const ::testing::TestParamInfo<std::tuple<const char*, at::ScalarType>>& p) {
  return std::string(std::get<0>(p.param)) + "_" + at::toString(std::get<1>(p.param));
}
INSTANTIATE_TEST_SUITE_P(Sets, BlockKernelsTest, kEverySet, name_of);
INSTANTIATE_TEST_SUITE_P(Sets, PoisonedKernelsTest, kEverySet, name_of);

}  // namespace
}  // namespace torchlore
