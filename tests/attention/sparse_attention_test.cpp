#include "torchlore/attention/sparse_attention.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "attention_oracle.hpp"
#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using testing::AttentionCase;
using testing::brute_force;
using testing::close;
using testing::message_of;
using testing::same;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t batch = 2, heads = 4, key_heads = 4, queries = 100, keys = 100, dim = 16, value_dim = 16;
};

/// A case of random numbers.
AttentionCase random_case(const Shape& s, const MaskSpec& spec,
                          at::ScalarType dtype = at::kDouble) {
  const auto numbers = [&](int64_t h, int64_t n, int64_t d) {
    return at::randn({s.batch, h, n, d}, at::kDouble).to(dtype);
  };
  return {numbers(s.heads, s.queries, s.dim), numbers(s.key_heads, s.keys, s.dim),
          numbers(s.key_heads, s.keys, s.value_dim),
          brute_force(spec, s.batch, s.heads, s.queries, s.keys)};
}

BlockLayout layout_of(const AttentionCase& c, const MaskSpec& spec,
                      const BlockLayoutOptions& options = {}) {
  return BlockLayout::build(spec, c.query.size(2), c.key.size(2), options);
}

/// Compares output, log-sum-exp and gradients with the definition in float64.
void expect_equal(const AttentionCase& c, const BlockLayout& layout,
                  const SparseAttentionOptions& options = {}) {
  auto leaf = c;
  for (auto* x : {&leaf.query, &leaf.key, &leaf.value}) *x = x->detach().requires_grad_();
  const auto [output, sums] =
      sparse_attention_with_lse(leaf.query, leaf.key, leaf.value, layout, options);
  const auto upstream = at::randn_like(output);
  const auto grads =
      torch::autograd::grad({output}, {leaf.query, leaf.key, leaf.value}, {upstream});
  const auto expected = testing::golden(c, upstream);
  EXPECT_TRUE(close(output, expected.output));
  EXPECT_TRUE(close(sums, expected.log_sum_exp));
  EXPECT_TRUE(close(grads[0], expected.query));
  EXPECT_TRUE(close(grads[1], expected.key));
  EXPECT_TRUE(close(grads[2], expected.value));
}

void expect_equal(const Shape& shape, const MaskSpec& spec, SparseAttentionOptions options = {}) {
  const auto c = random_case(shape, spec);
  options.enable_gqa |= shape.heads != shape.key_heads;
  expect_equal(c, layout_of(c, spec), options);
}

const MaskSpec& window() {
  static const MaskSpec spec = mask::causal() & mask::window(20);
  return spec;
}

class SparseAttention : public ::testing::Test {
 protected:
  // So small that threads would only wait for each other.
  static void SetUpTestSuite() { at::set_num_threads(1); }
};

TEST_F(SparseAttention, EqualsTheDefinition) {
  expect_equal(Shape{}, mask::causal());
  expect_equal(Shape{}, window() | mask::sinks(3));
}

TEST_F(SparseAttention, TakesLengthsThatDiffer) {
  for (const auto align : {Align::top_left, Align::bottom_right}) {
    expect_equal(Shape{.queries = 70, .keys = 200}, window().aligned(align));
    expect_equal(Shape{.queries = 200, .keys = 70}, window().aligned(align));
  }
}

TEST_F(SparseAttention, TakesHeadDimsOfAllSizes) {
  expect_equal(Shape{.batch = 1, .heads = 1, .key_heads = 1, .dim = 1, .value_dim = 1}, window());
  expect_equal(Shape{.heads = 2, .key_heads = 2, .dim = 80, .value_dim = 24}, window());
  expect_equal(Shape{.heads = 1, .key_heads = 1, .dim = 24, .value_dim = 256}, window());
  expect_equal(Shape{.heads = 1, .key_heads = 1, .dim = 300, .value_dim = 300}, window());
}

TEST_F(SparseAttention, SharesKeysAmongHeads) {
  expect_equal(Shape{.heads = 4, .key_heads = 2}, window());
  expect_equal(Shape{.heads = 4, .key_heads = 1}, window());
}

TEST_F(SparseAttention, TakesAScale) {
  const auto spec = window();
  for (const double scale : {0.0, 0.7, -0.3}) {
    auto c = random_case(Shape{}, spec);
    c.scale = scale;
    expect_equal(c, layout_of(c, spec), {.scale = scale});
  }
}

TEST_F(SparseAttention, AddsABiasOfEveryShapeThatBroadcasts) {
  const auto spec = window() | mask::strided(7);
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{2, 4, 100, 100},
                                                                             {4, 100, 100},
                                                                             {100, 100},
                                                                             {100},
                                                                             {2, 1, 1, 100},
                                                                             {1, 4, 100, 1},
                                                                             {1}}) {
    auto c = random_case(Shape{}, spec);
    c.added = at::randn(shape, at::kDouble);
    expect_equal(c, layout_of(c, spec), {.bias = c.added});
  }
}

TEST_F(SparseAttention, AddsABiasInLowerPrecisionToo) {
  // The compiled kernels read a bias as float32; float64 takes another way.
  const auto spec = window() | mask::strided(7);
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
             {2, 4, 100, 100}, {4, 100, 100}, {100, 100}, {100}, {2, 1, 1, 100}}) {
      auto c = random_case(Shape{}, spec, dtype);
      c.added = at::randn(shape, at::kDouble).to(at::kFloat).to(at::kDouble);
      const auto out = sparse_attention(c.query, c.key, c.value, layout_of(c, spec),
                                        {.bias = c.added->to(at::kFloat)});
      const auto [expected, sums] = testing::eager_forward(c.to(at::kDouble));
      const double error = (out.to(at::kDouble) - expected).abs().max().item<double>();
      EXPECT_LT(error, dtype == at::kFloat ? 1e-5 : 0.05) << dtype << " " << at::IntArrayRef(shape);
    }
  }
}

/// -slope · |distance| for every pair.
Tensor alibi(const Tensor& slopes, int64_t queries, int64_t keys, int64_t offset) {
  const auto q = at::arange(queries, at::kDouble) + static_cast<double>(offset);
  const auto distance = (at::arange(keys, at::kDouble) - q.unsqueeze(1)).abs();
  return -slopes.to(at::kDouble).view({1, -1, 1, 1}) * distance;
}

TEST_F(SparseAttention, AddsAlibi) {
  const auto slopes = at::tensor({0.5, 0.25, 0.125, 0.0625}, at::kFloat);
  auto c = random_case(Shape{}, window());
  c.added = alibi(slopes, 100, 100, 0);
  expect_equal(c, layout_of(c, window()), {.alibi_slopes = slopes});
}

TEST_F(SparseAttention, CountsAlibiFromWhereTheQueriesStand) {
  const auto slopes = at::tensor({0.5, 0.25, 0.125, 0.0625}, at::kFloat);
  for (const auto align : {Align::top_left, Align::bottom_right}) {
    const auto spec = window().aligned(align);
    auto c = random_case(Shape{.queries = 70}, spec);
    c.added = alibi(slopes, 70, 100, align == Align::bottom_right ? 30 : 0);
    expect_equal(c, layout_of(c, spec), {.alibi_slopes = slopes, .align = align});
  }
}

TEST_F(SparseAttention, TakesAnyStrides) {
  const auto spec = window();
  auto c = random_case(Shape{}, spec);
  c.query = c.query.transpose(1, 2).contiguous().transpose(1, 2);
  c.key = c.key.transpose(2, 3).contiguous().transpose(2, 3);
  c.value = at::cat({c.value, c.value}, 3).narrow(3, 8, 16);
  expect_equal(c, layout_of(c, spec));
  c.key = c.key.narrow(0, 0, 1).expand_as(c.value);
  expect_equal(c, layout_of(c, spec));
}

TEST_F(SparseAttention, TakesPatternsPerHeadAndBatch) {
  const auto heads = mask::per_head({mask::causal(), window(), mask::strided(5), !window()});
  auto c = random_case(Shape{}, heads);
  expect_equal(c, layout_of(c, heads, {.heads = 4}));
  const auto padded = mask::padding({37, 90}) & heads;
  c = random_case(Shape{}, padded);
  expect_equal(c, layout_of(c, padded, {.batch = 2, .heads = 4}));
}

TEST_F(SparseAttention, TakesBlocksOfAllSizes) {
  const auto spec = window() | mask::strided(29);
  for (const int64_t block : {32, 64, 128}) {
    const auto c = random_case(Shape{.queries = 300, .keys = 300}, spec);
    expect_equal(c, layout_of(c, spec, {.block_size = block}));
  }
}

TEST_F(SparseAttention, TakesSequencesOfAllLengths) {
  for (const int64_t n : {1, 2, 63, 64, 65, 1023}) {
    const Shape shape{
        .batch = 1, .heads = 1, .key_heads = 1, .queries = n, .keys = n, .dim = 8, .value_dim = 8};
    expect_equal(shape, window() | mask::sinks(2));
  }
}

TEST_F(SparseAttention, GivesZerosToAQueryWithoutKeys) {
  const auto spec = mask::documents(std::vector<int64_t>{30, 20});  // the rest is padding
  expect_equal(Shape{}, spec);
  const auto c = random_case(Shape{}, spec);
  const auto result = sparse_attention_with_lse(c.query, c.key, c.value, layout_of(c, spec));
  EXPECT_TRUE(same(result.output.narrow(2, 50, 50), at::zeros({2, 4, 50, 16}, at::kDouble)));
  EXPECT_TRUE(
      same(result.log_sum_exp.narrow(2, 50, 50), at::full({2, 4, 50}, -kInfinity, at::kDouble)));
  const auto nothing = !mask::all();
  expect_equal(Shape{}, nothing);
}

TEST_F(SparseAttention, TakesNothing) {
  const auto run = [](at::IntArrayRef q, at::IntArrayRef k) {
    const auto query = at::randn(q).requires_grad_(), key = at::randn(k).requires_grad_();
    const auto layout = BlockLayout::build(mask::all(), q[2], k[2]);
    const auto result = sparse_attention_with_lse(query, key, key, layout);
    const auto grads = torch::autograd::grad({result.output.sum()}, {query, key});
    EXPECT_TRUE(same(grads[0], at::zeros(q)));
    EXPECT_TRUE(same(grads[1], at::zeros(k)));
    return result;
  };
  EXPECT_EQ(run({1, 2, 0, 8}, {1, 2, 5, 8}).output.sizes(), (at::IntArrayRef{1, 2, 0, 8}));
  EXPECT_EQ(run({0, 2, 3, 8}, {0, 2, 5, 8}).output.sizes(), (at::IntArrayRef{0, 2, 3, 8}));
  EXPECT_EQ(run({1, 2, 0, 8}, {1, 2, 0, 8}).log_sum_exp.sizes(), (at::IntArrayRef{1, 2, 0}));
  const auto no_keys = run({1, 2, 3, 8}, {1, 2, 0, 8});
  EXPECT_TRUE(same(no_keys.output, at::zeros({1, 2, 3, 8})));
  EXPECT_TRUE(same(no_keys.log_sum_exp, at::full({1, 2, 3}, -kInfinity)));
}

TEST_F(SparseAttention, KeepsTheOrderOfQuerysMemory) {
  const auto layout = BlockLayout::build(window(), 100, 100);
  const auto tokens_first = at::randn({2, 100, 4, 16}).transpose(1, 2);
  const auto out = sparse_attention(tokens_first, tokens_first, tokens_first, layout);
  EXPECT_TRUE(out.transpose(1, 2).is_contiguous());
  const auto heads_first = tokens_first.contiguous();
  EXPECT_TRUE(sparse_attention(heads_first, heads_first, heads_first, layout).is_contiguous());
}

TEST_F(SparseAttention, HasTheSameBitsAtAnyNumberOfThreads) {
  const auto c = random_case(Shape{.queries = 300, .keys = 300}, window(), at::kFloat);
  const auto layout = layout_of(c, window());
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = sparse_attention(c.query, c.key, c.value, layout);
  at::set_num_threads(3);
  const auto three = sparse_attention(c.query, c.key, c.value, layout);
  at::set_num_threads(before);
  EXPECT_TRUE(same(one, three));
}

// Bad input.

struct Bad {
  Tensor query = at::zeros({2, 4, 10, 8}), key = at::zeros({2, 4, 10, 8});
  Tensor value = at::zeros({2, 4, 10, 8});
  BlockLayout layout = BlockLayout::build(mask::causal(), 10, 10);
  SparseAttentionOptions options = {};

  template <typename E = c10::ValueError>
  std::string message() const {
    return message_of<E>([&] { sparse_attention(query, key, value, layout, options); });
  }
};

TEST_F(SparseAttention, SaysWhichShapeIsWrong) {
  EXPECT_EQ(Bad{.query = Tensor()}.message(), "query is an undefined tensor");
  EXPECT_EQ(Bad{.key = at::zeros({4, 10, 8})}.message(),
            "key must have four dimensions, [batch, heads, tokens, dim], but its shape is "
            "[4, 10, 8]");
  EXPECT_EQ(Bad{.query = at::zeros({2, 0, 10, 8})}.message(),
            "query has no heads: its shape is [2, 0, 10, 8]");
  EXPECT_EQ(Bad{.value = at::zeros({1, 4, 10, 8})}.message(),
            "query, key and value must have the same batch size, but have 2, 2 and 1");
  EXPECT_EQ(Bad{.key = at::zeros({2, 4, 10, 6})}.message(),
            "query and key must have the same head dimension, 1 or more, but have 8 and 6");
  EXPECT_EQ(Bad{.value = at::zeros({2, 4, 9, 8})}.message(),
            "key and value must have the same heads and tokens, but their shapes are "
            "[2, 4, 10, 8] and [2, 4, 9, 8]");
}

TEST_F(SparseAttention, SaysWhichHeadsDoNotFit) {
  const auto two = at::zeros({2, 2, 10, 8}), three = at::zeros({2, 3, 10, 8});
  EXPECT_EQ((Bad{.key = two, .value = two}.message()),
            "query has 4 heads, but key and value 2; set enable_gqa if several query heads share "
            "one of theirs");
  EXPECT_EQ((Bad{.key = three, .value = three, .options = {.enable_gqa = true}}.message()),
            "query's 4 heads cannot share key's 3 evenly; their number must be a multiple");
}

TEST_F(SparseAttention, SaysWhatTheLayoutIsFor) {
  EXPECT_EQ(Bad{.layout = BlockLayout::build(mask::all(), 11, 12)}.message(),
            "the layout is for 11 queries and 12 keys, but there are 10 and 10");
  EXPECT_EQ(Bad{.layout = BlockLayout::build(mask::all(), 10, 10, {.batch = 3})}.message(),
            "the layout is for 3 batch entries, but there are 2");
  EXPECT_EQ(Bad{.layout = BlockLayout::build(mask::all(), 10, 10, {.heads = 2})}.message(),
            "the layout is for 2 heads, but query has 4");
}

TEST_F(SparseAttention, SaysWhichOptionIsWrong) {
  EXPECT_EQ(Bad{.options = {.scale = kInfinity}}.message(), "scale must be finite, but is inf");
  EXPECT_EQ(Bad{.options = {.dropout = 1}}.message(), "dropout must lie in [0, 1), but is 1");
  EXPECT_EQ(Bad{.options = {.dropout = -0.1}}.message(), "dropout must lie in [0, 1), but is -0.1");
  EXPECT_EQ(Bad{.options = {.bias = at::zeros({3, 10})}}.message(),
            "the bias has shape [3, 10], which does not broadcast to [2, 4, 10, 10]");
  EXPECT_EQ((Bad{.options = {.bias = at::zeros({10, 10}, at::kBool)}}.message<c10::TypeError>()),
            "the bias must be of a floating dtype, but is Bool; visible pairs are the layout's to "
            "say");
  EXPECT_EQ(Bad{.options = {.alibi_slopes = at::zeros({2})}}.message(),
            "alibi_slopes must have one element per query head, [4], but their shape is [2]");
  EXPECT_EQ((Bad{.options = {.alibi_slopes = at::zeros({4}).requires_grad_()}}
                 .message<c10::NotImplementedError>()),
            "alibi_slopes get no gradient, but require one; detach them, or give the distances as "
            "a bias");
  EXPECT_EQ((Bad{.key = at::zeros({2, 4, 12, 8}),
                 .value = at::zeros({2, 4, 12, 8}),
                 .layout = BlockLayout::build(mask::all(), 10, 12),
                 .options = {.alibi_slopes = at::zeros({4})}}
                 .message()),
            "there are 10 queries and 12 keys; set align, which says where query 0 stands for "
            "alibi_slopes");
}

TEST_F(SparseAttention, SaysWhichDtypeIsWrong) {
  EXPECT_EQ((Bad{.query = at::zeros({2, 4, 10, 8}, at::kLong),
                 .key = at::zeros({2, 4, 10, 8}, at::kLong),
                 .value = at::zeros({2, 4, 10, 8}, at::kLong)}
                 .message<c10::TypeError>()),
            "sparse_attention takes float32, bfloat16, float16 or float64, but query is Long");
  EXPECT_EQ((Bad{.value = at::zeros({2, 4, 10, 8}, at::kBFloat16)}.message<c10::TypeError>()),
            "query, key and value must have the same dtype, but are Float, Float and BFloat16");
}

TEST_F(SparseAttention, LetsAPredicatesErrorThrough) {
  const auto spec = mask::predicate([](int64_t q, int64_t, const Where&) {
    if (q == 7) throw std::runtime_error("no such query");
    return true;
  });
  EXPECT_THROW(BlockLayout::build(spec, 10, 10), std::runtime_error);
}

}  // namespace
}  // namespace torchlore
