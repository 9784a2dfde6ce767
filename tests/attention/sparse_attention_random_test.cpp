// Random masks, shapes and settings against the definition, by the compiled kernels and by LibTorch's
// ops on gathered tiles.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "../../src/attention/attention_op.hpp"
#include "../../src/attention/generic_attention.hpp"
#include "attention_oracle.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using testing::AttentionCase;

struct Random {
  explicit Random(uint64_t seed) : masks(seed) {
    heads = 1 + masks.pick(2);
    key_heads = masks.pick(2) == 0 ? heads : 1;
    const int64_t batch = 1 + masks.pick(2);
    const int64_t queries = 1 + masks.pick(100), keys = 1 + masks.pick(100);
    const int64_t dim = 1 + masks.pick(20), value_dim = 1 + masks.pick(20);
    spec = masks.next(queries, keys);
    const int64_t block = int64_t{32} << masks.pick(3);
    layout = BlockLayout::build(spec, queries, keys,
                                {.block_size = block, .batch = batch, .heads = heads});
    const auto numbers = [&](int64_t h, int64_t n, int64_t d) {
      return at::randn({batch, h, n, d}, at::kDouble);
    };
    c = {numbers(heads, queries, dim), numbers(key_heads, keys, dim),
         numbers(key_heads, keys, value_dim),
         testing::brute_force(spec, batch, heads, queries, keys)};
    upstream = numbers(heads, queries, value_dim);
  }

  testing::RandomMasks masks;
  MaskSpec spec;
  BlockLayout layout = BlockLayout::build(mask::all(), 0, 0);
  int64_t heads = 1, key_heads = 1;
  AttentionCase c;
  Tensor upstream;
};

/// Sums of numbers that cancel each other leave some units in the last place of the largest.
::testing::AssertionResult close(const Tensor& a, const Tensor& b) {
  if (at::allclose(a, b, 1e-12, 1e-13)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << a << "\ninstead of\n" << b;
}

::testing::AssertionResult all_close(const testing::AttentionAnswer& a,
                                     const testing::AttentionAnswer& b) {
  for (const auto& [x, y] : {std::pair(a.output, b.output),
                             {a.log_sum_exp, b.log_sum_exp},
                             {a.query, b.query},
                             {a.key, b.key},
                             {a.value, b.value}}) {
    if (auto result = close(x, y); !result) return result;
  }
  return ::testing::AssertionSuccess();
}

testing::AttentionAnswer by_op(const Random& r) {
  auto leaf = r.c;
  for (auto* x : {&leaf.query, &leaf.key, &leaf.value}) *x = x->detach().requires_grad_();
  const auto [output, sums] =
      sparse_attention_with_lse(leaf.query, leaf.key, leaf.value, r.layout, {.enable_gqa = true});
  const auto grads =
      torch::autograd::grad({output}, {leaf.query, leaf.key, leaf.value}, {r.upstream});
  return {output.detach(), sums.detach(), grads[0], grads[1], grads[2]};
}

testing::AttentionAnswer by_gathered_tiles(const Random& r) {
  const attention::Inputs inputs{r.c.query, r.c.key, r.c.value, std::nullopt, std::nullopt};
  const double scale = 1 / std::sqrt(static_cast<double>(r.c.query.size(3)));
  // Made by hand: the op registers the class when it is first called.
  attention::Settings settings{.pattern = c10::make_intrusive<attention::Pattern>(r.layout),
                               .scale = scale};
  const auto tiles = attention::tiles_of_call(inputs, settings);
  const auto [output, sums] = attention::generic_forward(inputs, settings, tiles);
  const auto grads =
      attention::generic_backward(r.upstream, {}, output, sums, inputs, settings, tiles, false);
  return {output, sums, grads.query, grads.key, grads.value};
}

TEST(SparseAttentionRandom, EqualsTheDefinition) {
  at::set_num_threads(1);  // so small that threads would only wait for each other
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Random r(seed);
    const auto expected = testing::golden(r.c, r.upstream);
    EXPECT_TRUE(all_close(by_op(r), expected)) << seed << ": " << to_string(r.spec);
    EXPECT_TRUE(all_close(by_gathered_tiles(r), expected)) << seed << ": " << to_string(r.spec);
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace torchlore
