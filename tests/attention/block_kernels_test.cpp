#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>

#include "attention_case.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using kernels::Passes;
using testing::AttentionCase;
using testing::AttentionResult;
using testing::BlockAttention;
using testing::eager;
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
/// error of a few numbers is a matter of luck: those have the dtype's tolerance.
::testing::AssertionResult as_good(const at::Tensor& ours, const at::Tensor& plain,
                                   const at::Tensor& right) {
  const auto dtype = ours.scalar_type();
  if (dtype == at::kDouble) return testing::close(ours, right);
  const auto error = ours.to(at::kDouble) - right, allowed = plain.to(at::kDouble) - right;
  const double ulp = epsilon(dtype) * largest(right);
  const bool low = dtype == at::kHalf || dtype == at::kBFloat16;
  const double most = (low ? 1.1 * largest(allowed) : 5 * largest(allowed)) + ulp;
  const double typical = (low ? rms(allowed) : 5 * rms(allowed)) + ulp / (low ? 16 : 1);
  const bool few = right.numel() < 4096;
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
  void check(const AttentionCase& wide) {
    const AttentionCase c = wide.to(dtype);
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

INSTANTIATE_TEST_SUITE_P(
    Sets, BlockKernelsTest,
    ::testing::Combine(::testing::Values("portable", "avx2", "avx512", "avx512bf16"),
                       ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf)),
    [](const auto& p) {
      return std::string(std::get<0>(p.param)) + "_" + at::toString(std::get<1>(p.param));
    });

}  // namespace
}  // namespace torchlore
