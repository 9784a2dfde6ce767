#include "../../src/attention/dense_attention.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>

#include "support/handlers.hpp"
#include "support/tolerance.hpp"
#include "torchlore/attention/sparse_attention.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using at::Tensor;

// Before the first kernel runs: where the portable ones do, LibTorch's attention is faster.
const int portable = ::setenv("TORCHLORE_KERNELS", "portable", 1);

/// The ops that compute attention, of those that ran.
testing::Names ops(const BlockLayout& layout, at::ScalarType dtype = at::kFloat,
                   const SparseAttentionOptions& options = {}, bool train = true) {
  const auto x = at::randn({1, 2, layout.queries(), 8}).to(dtype).requires_grad_(train);
  testing::Trace trace;
  {
    const OpMode mode(trace);
    sparse_attention(x, x, x, layout, options);
  }
  testing::Names attention;
  for (const auto& name : trace.names) {
    if (name.find("attention") != std::string::npos) attention.push_back(name);
  }
  return attention;
}

const testing::Names kDense{"aten::scaled_dot_product_attention"};
const testing::Names kSparse{"torchlore::sparse_attention"};

BlockLayout blocks(double density) {
  return BlockLayout::build(mask::random_sparsity(1 - density, 3), 640, 640);
}

TEST(DenseAttention, RunsFromTheCrossoverOn) {
  EXPECT_EQ(ops(BlockLayout::build(mask::all(), 640, 640)), kDense);
  EXPECT_EQ(ops(blocks(0.5)), kDense);
  EXPECT_EQ(ops(blocks(0.3)), kSparse);
}

TEST(DenseAttention, RunsOnlyWhereItIsAllowedAndComputesTheSame) {
  const auto all = BlockLayout::build(mask::all(), 640, 640);
  EXPECT_EQ(ops(all, at::kFloat, {.allow_dense = false}), kSparse);
  EXPECT_EQ(ops(all, at::kFloat, {.dropout = 0.1}), kSparse);
  EXPECT_EQ(ops(all, at::kFloat, {.bias = at::zeros({640})}), kSparse);
  EXPECT_EQ(ops(all, at::kFloat, {.alibi_slopes = at::zeros({2})}), kSparse);
  const auto padded = mask::documents(std::vector<int64_t>{600});
  EXPECT_EQ(ops(BlockLayout::build(padded, 640, 640)), kSparse);  // the last queries see nothing
  EXPECT_EQ(ops(BlockLayout::build(mask::all(), 0, 0)), kSparse);
}

TEST(DenseAttention, DoesNotRunWhereItsBackwardIsSlow) {
  const auto all = BlockLayout::build(mask::all(), 640, 640);
  EXPECT_EQ(ops(all, at::kBFloat16), kSparse);
  EXPECT_EQ(ops(all, at::kBFloat16, {}, /*train=*/false), kDense);
}

TEST(DenseAttention, GivesWhatTheKernelsGive) {
  const auto spec = mask::per_head({mask::causal(), mask::all()});
  const auto layout = BlockLayout::build(spec, 150, 150, {.heads = 2});
  const auto numbers = [](int64_t heads) {
    return at::randn({2, heads, 150, 8}, at::kDouble).requires_grad_();
  };
  const auto q = numbers(2), k = numbers(1), v = numbers(1);
  SparseAttentionOptions options{.scale = 0.7, .enable_gqa = true};
  const auto dense = sparse_attention(q, k, v, layout, options);
  options.allow_dense = false;
  const auto sparse = sparse_attention(q, k, v, layout, options);
  EXPECT_TRUE(testing::close(dense.detach(), sparse.detach()));
  const auto upstream = at::randn_like(dense);
  const auto a = torch::autograd::grad({dense}, {q, k, v}, {upstream});
  const auto b = torch::autograd::grad({sparse}, {q, k, v}, {upstream});
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(testing::close(a[i], b[i]));
}

}  // namespace
}  // namespace torchlore
