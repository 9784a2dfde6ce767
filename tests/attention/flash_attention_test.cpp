// The way of CUDA, with a kernel for packed sequences that runs on the CPU.
#include "../../src/attention/flash_attention.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "attention_oracle.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using attention::Packed;
using testing::AttentionCase;

/// Calls f(queries, keys) with the rows of each sequence, as slices.
template <typename F>
void each_sequence(const Packed& packed, const F& f) {
  const auto starts = [](const Tensor& x, int64_t i) {
    const int64_t first = x[i].item<int64_t>();
    return std::pair(first, x[i + 1].item<int64_t>() - first);
  };
  for (int64_t i = 0; i + 1 < packed.query_start.size(0); ++i) {
    f(starts(packed.query_start, i), starts(packed.key_start, i));
  }
}

/// Rows [rows, heads, dim] of a sequence as [1, heads, rows, dim], with `heads` heads.
Tensor sequence(const Tensor& x, std::pair<int64_t, int64_t> rows, int64_t heads) {
  const auto own = x.narrow(0, rows.first, rows.second).transpose(0, 1).unsqueeze(0);
  return own.repeat_interleave(heads / own.size(1), 1);
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const Packed& packed, double scale) {
  const int64_t heads = query.size(1);
  auto output = at::empty_like(query);
  auto sums = at::empty({heads, query.size(0)}, at::kFloat);
  each_sequence(packed, [&](auto queries, auto keys) {
    const auto [out, lse] =
        testing::eager_forward({sequence(query, queries, heads), sequence(key, keys, heads),
                                sequence(value, keys, heads), at::ones({1}, at::kBool), scale});
    output.narrow(0, queries.first, queries.second).copy_(out[0].transpose(0, 1));
    sums.narrow(1, queries.first, queries.second).copy_(lse[0]);
  });
  return {output, sums};
}

/// By the formulas, since output and log-sum-exp are those over more keys than the sequence's.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& query,
                                            const Tensor& key, const Tensor& value,
                                            const Tensor& output, const Tensor& log_sum_exp,
                                            const Packed& packed, double scale) {
  const int64_t heads = query.size(1), key_heads = key.size(1);
  auto gq = at::empty_like(query), gk = at::empty_like(key), gv = at::empty_like(value);
  each_sequence(packed, [&](auto queries, auto keys) {
    const auto q = sequence(query, queries, heads)[0], k = sequence(key, keys, heads)[0];
    const auto v = sequence(value, keys, heads)[0], g = sequence(grad_output, queries, heads)[0];
    const auto o = sequence(output, queries, heads)[0];
    const auto lse = log_sum_exp.narrow(1, queries.first, queries.second).unsqueeze(-1);
    const auto p = (at::matmul(q, k.transpose(1, 2)) * scale - lse).exp();
    const auto ds = p * (at::matmul(g, v.transpose(1, 2)) - (g * o).sum(-1, true)) * scale;
    const auto shared = [&](const Tensor& x) {
      return x.unflatten(0, {key_heads, heads / key_heads}).sum(1).transpose(0, 1);
    };
    gq.narrow(0, queries.first, queries.second).copy_(at::matmul(ds, k).transpose(0, 1));
    gk.narrow(0, keys.first, keys.second).copy_(shared(at::matmul(ds.transpose(1, 2), q)));
    gv.narrow(0, keys.first, keys.second).copy_(shared(at::matmul(p.transpose(1, 2), g)));
  });
  return {gq, gk, gv};
}

void expect_equal(const MaskSpec& spec, int64_t heads, int64_t key_heads, int64_t queries,
                  int64_t keys) {
  SCOPED_TRACE(to_string(spec));
  const auto numbers = [](int64_t h, int64_t n) { return at::randn({2, h, n, 8}); };
  const AttentionCase c{numbers(heads, queries), numbers(key_heads, keys), numbers(key_heads, keys),
                        testing::brute_force(spec, 2, heads, queries, keys)};
  const auto upstream = numbers(heads, queries);
  const attention::Inputs inputs{c.query, c.key, c.value, std::nullopt, std::nullopt};
  const auto layout = BlockLayout::build(spec, queries, keys, {.heads = heads});
  const attention::Settings settings{c10::make_intrusive<attention::Pattern>(layout),
                                     1 / std::sqrt(8.0)};
  const auto tiles = attention::tiles_of_call(inputs, settings);
  const attention::PackedKernel kernel{&forward, &backward};
  const auto [output, sums] = attention::flash_forward(inputs, settings, tiles, kernel);
  const auto grads =
      attention::flash_backward(upstream, output, sums, inputs, settings, tiles, kernel);
  const auto expected = testing::golden(c, upstream);
  const auto near = [](const Tensor& a, const Tensor& b) {
    return at::allclose(a.to(at::kDouble), b, 1e-5, 1e-5);
  };
  EXPECT_TRUE(near(output, expected.output));
  EXPECT_TRUE(near(sums, expected.log_sum_exp));
  EXPECT_TRUE(near(grads.query, expected.query));
  EXPECT_TRUE(near(grads.key, expected.key));
  EXPECT_TRUE(near(grads.value, expected.value));
}

TEST(FlashAttention, MergesFullAndPartialTiles) {
  expect_equal(mask::causal(), 2, 2, 300, 300);
  expect_equal(mask::all(), 2, 1, 100, 300);
  expect_equal(mask::causal() & (mask::window(100) | mask::sinks(70)), 4, 2, 300, 300);
}

TEST(FlashAttention, TakesPatternsOfEachHead) {
  expect_equal(mask::per_head({mask::causal(), mask::all(), mask::sinks(64), mask::window(20)}), 4,
               2, 200, 200);
}

TEST(FlashAttention, TakesQueriesWithoutKeys) {
  expect_equal(mask::documents(std::vector<int64_t>{130, 40}), 2, 2, 256, 256);
  expect_equal(mask::strided(3), 2, 2, 130, 130);  // no full tile
}

}  // namespace
}  // namespace torchlore
