#include "torchlore/attention/sparse_attention_scope.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/transformercoder.h>
#include <torch/nn/modules/transformerlayer.h>

#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "support/handlers.hpp"
#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "support/warnings.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/parameter_index.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using testing::close;
using testing::CollectWarnings;
using testing::message_of;
using testing::same;
using testing::Trace;
using OptionalTensor = std::optional<Tensor>;

constexpr double kHidden = -std::numeric_limits<double>::infinity();

/// Visible pairs [1, H, T, S] by the definition, without blocks.
Tensor visible(const MaskSpec& spec, int64_t queries, int64_t keys, int64_t heads = 1) {
  auto shown = at::zeros({1, heads, queries, keys}, at::kBool);
  auto pairs = shown.accessor<bool, 4>();
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t q = 0; q < queries; ++q) {
      for (int64_t k = 0; k < keys; ++k) {
        pairs[0][h][q][k] = spec.visible(q, k, {queries, keys, 0, h});
      }
    }
  }
  return shown;
}

Tensor as_bias(const Tensor& shown) {
  return at::zeros(shown.sizes()).masked_fill(shown.logical_not(), kHidden);
}

/// No row of it is empty, and no block is either full or empty only.
MaskSpec causal_window() { return mask::causal() & (mask::window(9) | mask::sinks(2)); }

std::vector<Tensor> gradients(const Tensor& out, const std::vector<Tensor>& of) {
  return torch::autograd::grad({(out * out).sum()}, of, {}, /*retain_graph=*/true,
                               /*create_graph=*/false, /*allow_unused=*/true);
}

void expect_close(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].defined(), b[i].defined()) << i;
    if (!a[i].defined()) continue;
    // Sums in another order: the error is that of the sum, not of each element.
    EXPECT_LE((a[i] - b[i]).abs().max().item<double>(),
              2e-5 * (1 + b[i].abs().max().item<double>()))
        << i;
  }
}

// --- scaled_dot_product_attention ----------------------------------------------------------------

struct OneOp {
  std::string name;
  std::vector<int64_t> query = {2, 4, 70, 16};
  std::vector<int64_t> key = {2, 4, 70, 16};
  std::vector<int64_t> mask = {};  // of the model's own mask; empty: none
  bool added = false;              // the mask is added, else boolean
  bool causal = false;
  bool gqa = false;
  std::optional<double> scale = std::nullopt;
  MaskSpec spec = causal_window();
};

void PrintTo(const OneOp& row, std::ostream* out) { *out << row.name; }

std::vector<OneOp> one_ops() {
  const auto both_sides = mask::window(9) | mask::sinks(2);
  return {
      {.name = "plain"},
      {.name = "scale", .scale = 0.3},
      {.name = "causal", .causal = true, .spec = both_sides},
      {.name = "causal_twice", .causal = true},
      {.name = "causal_fewer_keys", .key = {2, 4, 40, 16}, .causal = true, .spec = mask::sinks(40)},
      {.name = "bool_mask", .mask = {70, 70}},
      {.name = "bool_mask_of_heads", .mask = {1, 4, 70, 70}},
      {.name = "added_mask", .mask = {70, 70}, .added = true},
      {.name = "added_mask_of_examples", .mask = {2, 1, 1, 70}, .added = true},
      {.name = "grouped_heads", .key = {2, 2, 70, 16}, .gqa = true},
      {.name = "one_key_head_for_all", .key = {2, 1, 70, 16}},
      {.name = "one_key_batch_for_all", .key = {1, 4, 70, 16}},
      {.name = "three_dimensions", .query = {3, 70, 16}, .key = {3, 70, 16}, .mask = {3, 70, 70}},
      {.name = "two_dimensions", .query = {70, 16}, .key = {70, 16}, .mask = {70, 70}},
      {.name = "five_dimensions",
       .query = {2, 3, 4, 70, 16},
       .key = {2, 1, 4, 70, 16},
       .mask = {2, 3, 1, 70, 70}},
      {.name = "more_keys",
       .query = {2, 4, 30, 16},
       .spec = causal_window().aligned(Align::bottom_right)},
  };
}

class OneOpInside : public ::testing::TestWithParam<OneOp> {};

TEST_P(OneOpInside, SeesWhatBothMasksShow) {
  const auto& row = GetParam();
  at::manual_seed(3);
  const auto q = at::randn(row.query).requires_grad_();
  const auto k = at::randn(row.key).requires_grad_();
  const auto v = at::randn(row.key).requires_grad_();
  const auto queries = q.size(-2), keys = k.size(-2);
  OptionalTensor own;
  if (!row.mask.empty()) {
    own = row.added ? at::randn(row.mask) : at::rand(row.mask) < 0.8;
    // A row without keys is NaN in some of LibTorch's kernels: every query sees itself.
    if (!row.added) own = *own | at::eye(queries, keys, at::kBool);
  }
  auto shown = visible(row.spec, queries, keys).squeeze(0).squeeze(0);
  if (row.causal) shown = shown & at::ones_like(shown).tril();
  Tensor both = as_bias(shown);
  if (own) both = both + (row.added ? *own : as_bias(*own));
  const auto expected =
      at::scaled_dot_product_attention(q, k, v, both, 0.0, false, row.scale, row.gqa);

  SparseAttentionScope scope(row.spec, {.not_sparse = NotSparse::error, .allow_dense = false});
  const auto out =
      at::scaled_dot_product_attention(q, k, v, own, 0.0, row.causal, row.scale, row.gqa);
  EXPECT_EQ(out.sizes(), expected.sizes());
  expect_close({out}, {expected});
  expect_close(gradients(out, {q, k, v}), gradients(expected, {q, k, v}));
  ASSERT_EQ(scope.seen().size(), 1U);
  EXPECT_EQ(scope.seen()[0].path, AttentionPath::sparse);
}

INSTANTIATE_TEST_SUITE_P(Calls, OneOpInside, ::testing::ValuesIn(one_ops()),
                         [](const auto& row) { return row.param.name; });

TEST(SparseAttentionScope, LeavesTheCausalMaskWhereLibTorchPutsIt) {
  const auto q = at::randn({1, 1, 3, 4}), k = at::randn({1, 1, 6, 4}), v = at::randn({1, 1, 6, 4});
  const auto expected = at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true);
  SparseAttentionScope scope(mask::all());
  expect_close({at::scaled_dot_product_attention(q, k, v, {}, 0.0, true)}, {expected});
}

TEST(SparseAttentionScope, DropsOutByTheModelsProbability) {
  at::manual_seed(5);
  const auto x = at::randn({1, 2, 64, 8}), ones = at::ones({1, 2, 64, 8});
  SparseAttentionScope scope(mask::causal());
  const auto mean = [&](double p) {
    double sum = 0;
    for (int i = 0; i < 50; ++i) {
      sum += at::scaled_dot_product_attention(x, x, ones, {}, p).mean().item<double>();
    }
    return sum / 50;
  };
  EXPECT_DOUBLE_EQ(mean(0), 1);
  EXPECT_NEAR(mean(0.3), 1, 0.02);
  EXPECT_FALSE(at::equal(at::scaled_dot_product_attention(x, x, ones, {}, 0.3),
                         at::scaled_dot_product_attention(x, x, ones, {}, 0.3)));
}

// --- nn::MultiheadAttention ----------------------------------------------------------------------

struct Layer {
  std::string name;
  torch::nn::MultiheadAttentionOptions options = {16, 4};
  int64_t keys = 40;  // other than 40: key and value are not the query
  bool own_mask = false;
  bool padding = false;
  bool need_weights = true;
  bool average = true;
  bool grad_mask = false;  // the mask is a parameter
  SparseAttentionScopeOptions scope = {.not_sparse = NotSparse::error, .allow_dense = false};
  MaskSpec spec = causal_window();
};

void PrintTo(const Layer& row, std::ostream* out) { *out << row.name; }

std::vector<Layer> layers() {
  using Options = torch::nn::MultiheadAttentionOptions;
  const auto aligned = causal_window().aligned(Align::top_left);
  const auto of_heads = mask::per_head(
      {mask::causal(), mask::window(3) | mask::sinks(2), mask::all(), mask::sinks(7)});
  const SparseAttentionScopeOptions four_heads{
      .heads = 4, .not_sparse = NotSparse::error, .allow_dense = false};
  return {
      {.name = "weights_returned"},
      {.name = "weights_of_each_head", .average = false},
      {.name = "no_weights", .need_weights = false},
      {.name = "own_mask", .own_mask = true},
      {.name = "own_mask_with_gradient", .own_mask = true, .grad_mask = true},
      {.name = "padding", .padding = true},
      {.name = "own_mask_and_padding", .own_mask = true, .padding = true},
      {.name = "padding_no_weights", .padding = true, .need_weights = false},
      {.name = "without_bias", .options = Options(16, 4).bias(false)},
      {.name = "bias_for_keys", .options = Options(16, 4).add_bias_kv(true), .spec = aligned},
      {.name = "zeros_to_attend_to",
       .options = Options(16, 4).add_zero_attn(true),
       .spec = aligned},
      {.name = "zeros_mask_and_padding",
       .options = Options(16, 4).add_zero_attn(true),
       .own_mask = true,
       .padding = true,
       .spec = aligned},
      {.name = "cross", .keys = 70, .spec = aligned},
      {.name = "other_widths",
       .options = Options(16, 4).kdim(6).vdim(6),
       .keys = 70,
       .padding = true,
       .spec = aligned},
      {.name = "mask_per_head", .scope = four_heads, .spec = of_heads},
      {.name = "mask_per_head_and_padding",
       .padding = true,
       .scope = {.not_sparse = NotSparse::error, .allow_dense = false},
       .spec = of_heads},
  };
}

/// Adds the pairs' bias before each softmax: the mask by LibTorch's own ops.
struct AddBeforeSoftmax : OpHandler {
  explicit AddBeforeSoftmax(const MaskSpec& of) : spec(of) {}
  at::Tensor softmax(const Tensor& input, int64_t dim,
                     std::optional<at::ScalarType> dtype) override {
    const auto bias = as_bias(visible(spec, input.size(1), input.size(2), 4)).squeeze(0);
    return OpHandler::softmax(input + bias.repeat({input.size(0) / 4, 1, 1}), dim, dtype);
  }
  MaskSpec spec;
};

class LayerInside : public ::testing::TestWithParam<Layer> {
 protected:
  static constexpr int64_t kBatch = 2, kQueries = 40;

  LayerInside() {
    at::manual_seed(7);
    layer = torch::nn::MultiheadAttention(row.options);
    for (auto& p : layer->parameters()) p.data().copy_(at::randn(p.sizes()) * 0.3);
    query = at::randn({kQueries, kBatch, 16}).requires_grad_();
    key = query;
    if (row.keys != kQueries) {
      key = at::randn({row.keys, kBatch, row.options.kdim()}).requires_grad_();
    }
    if (row.own_mask) own = at::randn({kQueries, row.keys}).requires_grad_(row.grad_mask);
    if (row.padding) {
      padding = at::zeros({kBatch, row.keys}, at::kBool);
      padding.select(0, 1).slice(0, row.keys - 5).fill_(true);
    }
  }

  std::tuple<Tensor, Tensor> call() {
    return layer(query, key, key, padding, row.need_weights, own, row.average);
  }
  std::vector<Tensor> leaves() const {
    auto all = layer->parameters();
    all.push_back(query);
    if (row.keys != kQueries) all.push_back(key);
    if (row.grad_mask) all.push_back(own);
    return all;
  }

  Layer row = GetParam();
  torch::nn::MultiheadAttention layer{nullptr};
  Tensor query, key, own, padding;
};

TEST_P(LayerInside, SeesWhatBothMasksShow) {
  std::tuple<Tensor, Tensor> expected;
  {
    const OpMode mode(std::make_shared<AddBeforeSoftmax>(row.spec));
    expected = call();
  }
  Trace around;
  std::tuple<Tensor, Tensor> results;
  std::vector<SeenAttention> seen;
  {
    const OpMode mode(around);
    const SparseAttentionScope scope(row.spec, row.scope);
    results = call();
    seen = scope.seen();
  }
  ASSERT_EQ(seen.size(), 1U);
  EXPECT_EQ(seen[0].path, AttentionPath::sparse);
  EXPECT_EQ(seen[0].ops, "bmm, softmax, bmm");
  // Nothing was computed that dense attention consists of.
  for (const auto& name : around.names) {
    EXPECT_TRUE(name != "aten::bmm" && name != "aten::softmax.int") << name;
  }
  const auto& [out, weights] = results;
  expect_close({out}, {std::get<0>(expected)});
  expect_close(gradients(out, leaves()), gradients(std::get<0>(expected), leaves()));
  ASSERT_EQ(weights.defined(), row.need_weights);
  if (!row.need_weights) return;
  const auto& by_ops = std::get<1>(expected);
  EXPECT_EQ(weights.sizes(), by_ops.sizes());
  EXPECT_EQ(weights.scalar_type(), by_ops.scalar_type());
  EXPECT_TRUE(weights.requires_grad());
  const auto elements = weights.clone();  // they are computed now
  expect_close({elements}, {by_ops});
  expect_close(gradients(elements, leaves()), gradients(by_ops, leaves()));
}

TEST_P(LayerInside, RunsWithoutGradients) {
  const auto by_mode = [&](bool inference) {
    const c10::InferenceMode mode(inference);
    const at::NoGradGuard no_grad;
    Tensor expected;
    {
      const OpMode softmax(std::make_shared<AddBeforeSoftmax>(row.spec));
      expected = std::get<0>(call());
    }
    const SparseAttentionScope scope(row.spec, row.scope);
    expect_close({std::get<0>(call())}, {expected});
  };
  by_mode(false);
  by_mode(true);
}

INSTANTIATE_TEST_SUITE_P(Calls, LayerInside, ::testing::ValuesIn(layers()),
                         [](const auto& row) { return row.param.name; });

TEST(SparseAttentionScope, RunsAWholeTransformerSparse) {
  at::manual_seed(2);
  torch::nn::TransformerEncoderLayerOptions options(16, 4);
  torch::nn::TransformerEncoder encoder(
      torch::nn::TransformerEncoderOptions(options.dim_feedforward(32), 3));
  encoder->eval();
  const auto x = at::randn({40, 2, 16});
  Tensor expected;
  {
    const OpMode softmax(std::make_shared<AddBeforeSoftmax>(causal_window()));
    expected = encoder(x);
  }
  const SparseAttentionScope scope(causal_window(), {.not_sparse = NotSparse::error});
  expect_close({encoder(x)}, {expected});
  encoder->train();  // with dropout of weights
  EXPECT_FALSE(at::equal(encoder(x), encoder(x)));
  ASSERT_EQ(scope.seen().size(), 1U);
  EXPECT_EQ(scope.seen()[0].count, 9);
}

TEST(SparseAttentionScope, ReturnsTheWeightsThatItDroppedOut) {
  at::manual_seed(2);
  torch::nn::MultiheadAttention layer(torch::nn::MultiheadAttentionOptions(16, 1).dropout(0.5));
  layer->out_proj->weight.data().copy_(at::eye(16));
  layer->out_proj->bias.data().zero_();
  const auto x = at::randn({40, 1, 16});
  Tensor out, weights;
  {
    const SparseAttentionScope scope(causal_window(), {.not_sparse = NotSparse::error});
    std::tie(out, weights) = layer(x, x, x);
  }
  const auto value = at::linear(x, layer->in_proj_weight, layer->in_proj_bias).chunk(3, -1)[2];
  at::manual_seed(99);  // the draw was made
  expect_close({out.select(1, 0)}, {at::mm(weights.select(0, 0), value.select(1, 0))});
  const auto kept = (weights != 0).sum().item<double>();
  const auto shown = visible(causal_window(), 40, 40).sum().item<double>();
  EXPECT_NEAR(kept / shown, 0.5, 0.1);
}

// --- Anything else that meets the scores ---------------------------------------------------------

/// An attention as a model may write it, with something done to the scores or weights on the way.
struct Meddling {
  std::string name;
  std::function<Tensor(const Tensor& q, const Tensor& k, const Tensor& v)> attention;
  bool sparse = false;  // still recognised
  bool gradients =
      false;  // changes who has gradients: without them it is an attention like any other
};

void PrintTo(const Meddling& row, std::ostream* out) { *out << row.name; }

Tensor scores_of(const Tensor& q, const Tensor& k) { return at::bmm(q, k.transpose(1, 2)); }

std::vector<Meddling> meddlings() {
  const auto causal = [] { return as_bias(at::ones({40, 40}, at::kBool).tril()); };
  return {
      {"scores_are_read",
       [](auto& q, auto& k, auto& v) {
         const auto s = scores_of(q, k);
         return at::bmm(s.softmax(-1), v) * s.max();
       }},
      {"scores_are_read_first",
       [](auto& q, auto& k, auto& v) {
         const auto s = scores_of(q, k);
         const auto largest = s.max();
         return at::bmm(s.softmax(-1), v) * largest;
       }},
      {"scores_are_scaled_in_place",
       [](auto& q, auto& k, auto& v) { return at::bmm(scores_of(q, k).mul_(0.5).softmax(-1), v); }},
      {"scores_are_capped",
       [](auto& q, auto& k, auto& v) { return at::bmm(scores_of(q, k).tanh().softmax(-1), v); }},
      {"scores_are_changed_after_the_softmax",
       [](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k);
         const auto w = s.softmax(-1);
         s.zero_();
         return at::bmm(w, v) + s.sum();
       }},
      {"scores_are_added_to_after_the_softmax",
       [causal](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k);
         const auto w = s.softmax(-1);
         s += causal();
         return at::bmm(w, v) + at::bmm(s.softmax(-1), v);
       }},
      {"a_view_is_changed",
       [](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k);
         s.view({2, 2, 40, 40}).mul_(2);
         return at::bmm(s.softmax(-1), v);
       }},
      {"a_view_is_added_to",
       [causal](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k);
         auto view = s.view({2, 2, 40, 40});
         view += causal();
         return at::bmm(s.softmax(-1), v);
       }},
      {"a_viewed_one_is_added_to",
       [causal](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k);
         const auto view = s.view({2, 2, 40, 40});
         s += causal();
         return at::bmm(view.softmax(-1).view({4, 40, 40}), v);
       }},
      {"a_slice_is_changed",
       [](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k);
         s.select(2, 3).fill_(-5);
         return at::bmm(s.softmax(-1), v);
       }},
      {"written_through_an_alias_of_the_elements",
       [](auto& q, auto& k, auto& v) {
         const auto s = scores_of(q, k);
         const auto w = s.softmax(-1);
         s.detach().zero_();
         return at::bmm(w, v);
       }},
      {"written_through_data",
       [](auto& q, auto& k, auto& v) {
         const auto s = scores_of(q, k);
         const auto w = s.softmax(-1);
         w.variable_data().mul_(2);
         return at::bmm(w.detach(), v) + s.sum() * 0;
       }},
      {"written_by_out",
       [](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k).detach();
         at::add_out(s, q.detach().select(2, 0).unsqueeze(1), at::ones({4, 40, 40}));
         return at::bmm(s.softmax(-1), v);
       }},
      {"shape_is_changed_in_place",
       [](auto& q, auto& k, auto& v) {
         auto s = scores_of(q, k);
         s.transpose_(1, 2);
         EXPECT_EQ(s.stride(1), 1);
         return at::bmm(s.softmax(-1), v);
       }},
      {"softmax_over_queries",
       [](auto& q, auto& k, auto& v) { return at::bmm(scores_of(q, k).softmax(1), v); }},
      {"two_softmaxes",
       [](auto& q, auto& k, auto& v) {
         return at::bmm(scores_of(q, k).softmax(-1).softmax(-1), v);
       }},
      {"softmax_in_another_dtype",
       [](auto& q, auto& k, auto& v) {
         return at::bmm(scores_of(q, k).softmax(-1, at::kDouble), v.to(at::kDouble));
       }},
      {"weights_are_read",
       [](auto& q, auto& k, auto& v) {
         const auto w = scores_of(q, k).softmax(-1);
         const auto entropy = at::special_entr(w).sum();
         return at::bmm(w, v) * entropy;
       }},
      {"weights_are_scaled",
       [](auto& q, auto& k, auto& v) { return at::bmm(scores_of(q, k).softmax(-1) * 2, v); }},
      {"weights_are_divided",
       [](auto& q, auto& k, auto& v) { return at::bmm(scores_of(q, k).softmax(-1) / 2, v); }},
      {"weights_are_transposed",
       [](auto& q, auto& k, auto& v) {
         return at::bmm(scores_of(q, k).softmax(-1).transpose(1, 2), v);
       }},
      {"weights_in_a_list",
       [](auto& q, auto& k, auto& v) {
         const auto w = scores_of(q, k).softmax(-1);
         return at::bmm(at::cat({w, w}, 2), at::cat({v, v}, 1));
       }},
      {"weights_are_copied_from",
       [](auto& q, auto& k, auto& v) {
         const auto w = scores_of(q, k).softmax(-1);
         return at::bmm(at::zeros({4, 40, 40}).copy_(w), v);
       }},
      {"a_finite_fill",
       [](auto& q, auto& k, auto& v) {
         const auto hidden = at::ones({40, 40}, at::kBool).triu(1);
         return at::bmm(scores_of(q, k).masked_fill(hidden, -1.0).softmax(-1), v);
       }},
      {"half_a_mask",
       [causal](auto& q, auto& k, auto& v) {
         const auto other = at::rand({40, 40});
         return at::bmm(scores_of(q, k).add(other, 0.5).softmax(-1), v);
       }},
      {"no_softmax", [](auto& q, auto& k, auto& v) { return at::bmm(scores_of(q, k), v); }},
      {"scores_of_scores",
       [](auto& q, auto& k, auto& v) {
         const auto s = scores_of(q, k);
         return at::bmm(at::bmm(s, s.transpose(1, 2)).softmax(-1), v);
       }},
      {"gradients_come_off_on_the_way",
       [](auto& q, auto& k, auto& v) {
         Tensor w;
         {
           const at::NoGradGuard no_grad;
           w = scores_of(q, k).softmax(-1);
         }
         return at::bmm(w, v);
       },
       false, true},
      {"the_middle_without_gradients",
       [](auto& q, auto& k, auto& v) {
         const auto s = scores_of(q, k);
         const at::NoGradGuard no_grad;
         const auto w = s.softmax(-1);
         const at::AutoGradMode grad(true);
         return at::bmm(w, v);
       },
       false, true},
      {"values_of_another_attention",
       [](auto& q, auto& k, auto& v) {
         const auto w = scores_of(q, k).softmax(-1);
         return at::bmm(w, at::bmm(w, v));
       },
       true},
  };
}

class MeddledInside : public ::testing::TestWithParam<Meddling> {};

TEST_P(MeddledInside, NeverGivesAWrongNumber) {
  const auto& row = GetParam();
  const auto run = [&](bool inference) {
    const c10::InferenceMode mode(inference);
    at::manual_seed(4);
    const auto make = [&] { return at::randn({4, 40, 8}).requires_grad_(!inference); };
    const auto q = make(), k = make(), v = make();
    at::manual_seed(6);
    const auto plain = row.attention(q, k, v);
    at::manual_seed(6);
    Tensor out;
    std::vector<SeenAttention> seen;
    {
      // With the mask of everything a recognised attention has the plain one's numbers.
      const SparseAttentionScope scope(mask::all(), {.not_sparse = NotSparse::allow});
      out = row.attention(q, k, v);
      seen = scope.seen();
    }
    expect_close({out}, {plain});
    if (!row.sparse) {
      EXPECT_TRUE(same(out, plain));
    }
    if (!inference) expect_close(gradients(out, {q, k, v}), gradients(plain, {q, k, v}));
    for (const auto& one : seen) {
      EXPECT_EQ(one.path == AttentionPath::sparse, row.sparse) << one;
    }
  };
  run(false);
  if (!row.gradients) run(true);
}

TEST_P(MeddledInside, IsLeftAloneWholeOrNotAtAll) {
  const auto& row = GetParam();
  if (row.sparse) return;
  at::manual_seed(4);
  const auto q = at::randn({4, 40, 8}), k = at::randn({4, 40, 8}), v = at::randn({4, 40, 8});
  at::manual_seed(6);
  const auto plain = row.attention(q, k, v);
  at::manual_seed(6);
  const SparseAttentionScope scope(mask::causal(), {.not_sparse = NotSparse::allow});
  EXPECT_TRUE(same(row.attention(q, k, v), plain));
}

INSTANTIATE_TEST_SUITE_P(Ways, MeddledInside, ::testing::ValuesIn(meddlings()),
                         [](const auto& row) { return row.param.name; });

// --- What goes around the dispatcher -------------------------------------------------------------

/// Query, key and value as nn::MultiheadAttention has them.
struct Parts {
  Parts() {
    at::manual_seed(4);
    for (auto* part : {&q, &k, &v}) *part = at::randn({4, 40, 8}).requires_grad_();
  }
  Tensor scores() const { return scores_of(q, k); }
  Tensor q, k, v;
};

struct Doubled : torch::autograd::Function<Doubled> {
  static Tensor forward(torch::autograd::AutogradContext* /*context*/, const Tensor& x) {
    return x * 2;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* /*context*/,
                                                 const torch::autograd::variable_list& gradients) {
    return {gradients[0] * 2};
  }
};

TEST(DeferredScores, HaveNoMemoryToReadWrongNumbersFrom) {
  const Parts parts;
  const SparseAttentionScope scope(mask::causal());
  const auto scores = parts.scores();
  const std::string expected =
      "this tensor has not been computed: inside a SparseAttentionScope the scores and weights of "
      "an attention are computed only when an op asks for them; take its .clone() first";
  EXPECT_EQ(message_of([&] { scores.data_ptr<float>(); }), expected);
  EXPECT_EQ(message_of([&] { (void)scores.accessor<float, 3>(); }), expected);
  EXPECT_EQ(message_of([&] { scores.storage(); }), expected);
  EXPECT_TRUE(same(scores.clone(), scores_of(parts.q.detach().clone(), parts.k.detach()).clone()));
}

TEST(DeferredScores, RefuseGradientsThatTheyCannotPassOn) {
  const Parts parts;
  const SparseAttentionScope scope(mask::causal(), {.not_sparse = NotSparse::allow});
  const auto out = at::bmm(Doubled::apply(parts.scores().softmax(-1)), parts.v).sum();
  try {
    out.backward();
    ADD_FAILURE() << "did not throw";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("through code that goes around"), std::string::npos)
        << error.what();
  }
}

TEST(DeferredScores, NoticeThatTheirInputsWereWritten) {
  const Parts parts;
  const std::string expected =
      "a tensor that the scores of an attention are computed from was written in place after the "
      "scores: inside a SparseAttentionScope they are computed when an op asks for them; write to "
      "a "
      "copy, or let SparseAttentionScopeOptions::where leave this attention out";
  const SparseAttentionScope scope(mask::causal());
  const at::NoGradGuard no_grad;
  for (auto* part : {&parts.q, &parts.k}) {
    const auto scores = parts.scores();
    const auto weights = scores.softmax(-1);
    part->add_(1);
    EXPECT_EQ(message_of([&] { at::bmm(weights, parts.v); }), expected);
    EXPECT_EQ(message_of([&] { (void)scores.sum(); }), expected);
  }
  auto scores = parts.scores();
  auto own = at::zeros({40, 40});
  scores += own;
  own.fill_(1);
  EXPECT_EQ(message_of([&] { at::bmm(scores.softmax(-1), parts.v); }), expected);
  // After the product, too, if its weights are asked for.
  const auto weights = parts.scores().softmax(-1);
  (void)at::bmm(weights, parts.v);
  parts.k.zero_();
  EXPECT_EQ(message_of([&] { (void)weights.sum(); }), expected);
}

TEST(DeferredScores, KeepACopyInInferenceMode) {
  const c10::InferenceMode inference;
  Parts parts;
  for (auto* part : {&parts.q, &parts.k, &parts.v}) *part = part->detach().clone();
  const auto plain = at::bmm(parts.scores().softmax(-1), parts.v);
  const SparseAttentionScope scope(mask::all());
  const auto weights = parts.scores().softmax(-1);
  parts.q.zero_();
  parts.k.zero_();
  expect_close({at::bmm(weights, parts.v)}, {plain});
}

TEST(DeferredScores, AreComputedOnOtherThreadsAndAfterTheScope) {
  const Parts parts;
  Tensor scores, weights, out;
  {
    const SparseAttentionScope scope(mask::causal());
    scores = parts.scores();
    weights = parts.scores().softmax(-1);
    out = at::bmm(weights, parts.v);
  }
  Tensor elements;
  std::thread([&] { elements = weights + 0; }).join();
  expect_close({at::bmm(elements, parts.v)}, {out});
  EXPECT_TRUE(same(scores.detach(), parts.scores().detach()));
  EXPECT_EQ((elements.triu(1) != 0).sum().item<int64_t>(), 0);
}

TEST(DeferredScores, AnswerTheQuestionsThatNeedNoElements) {
  const Parts parts;
  const SparseAttentionScope scope(mask::all(), {.not_sparse = NotSparse::error});
  const auto scores = parts.scores();
  EXPECT_EQ(scores.sizes(), at::IntArrayRef({4, 40, 40}));
  EXPECT_EQ(scores.strides(), at::IntArrayRef({1600, 40, 1}));
  EXPECT_TRUE(scores.is_contiguous() && scores.requires_grad() && scores.is_cpu());
  EXPECT_EQ(scores.scalar_type(), at::kFloat);
  EXPECT_EQ(scores.layout(), at::kStrided);
  EXPECT_FALSE(scores.has_storage() || scores.is_leaf());
  (void)at::bmm(scores.softmax(-1), parts.v);
  EXPECT_EQ(scope.seen().at(0).path, AttentionPath::sparse);
}

// --- Beside other modes --------------------------------------------------------------------------

/// Looks parameters up among the arguments of matrix products, as a counter of operations does.
struct LookUp : OpHandler {
  explicit LookUp(const torch::nn::Module& model) : parameters(model) {}
  Tensor bmm(const Tensor& a, const Tensor& b) override {
    found += parameters.find(a) || parameters.find(b) ? 1 : 0;
    ++products;
    return OpHandler::bmm(a, b);
  }
  bool changes_results() const override { return false; }
  ParameterIndex parameters;
  int64_t found = 0, products = 0;
};

struct DoubledSoftmax : OpHandler {
  Tensor softmax(const Tensor& input, int64_t dim, std::optional<at::ScalarType> dtype) override {
    return OpHandler::softmax(input, dim, dtype) * 2;
  }
};

struct MultiheadBeside : ::testing::Test {
  MultiheadBeside() {
    at::manual_seed(4);
    layer = torch::nn::MultiheadAttention(16, 4);
    x = at::randn({40, 2, 16});
    const SparseAttentionScope scope(causal_window());
    alone = std::get<0>(layer(x, x, x)).detach();
  }
  torch::nn::MultiheadAttention layer{nullptr};
  Tensor x, alone;
};

TEST_F(MultiheadBeside, ModesInsideThatLook) {
  for (const bool parts : {false, true}) {
    Trace trace(parts);
    LookUp look_up(*layer);
    const SparseAttentionScope scope(causal_window(), {.not_sparse = NotSparse::error});
    const OpMode tracing(trace);
    const OpMode looking(look_up);
    const auto out = std::get<0>(layer(x, x, x)).detach();
    EXPECT_TRUE(same(out, alone));
    EXPECT_EQ(look_up.products, 2);
    EXPECT_EQ(look_up.found, 0);
    EXPECT_EQ(scope.seen().at(0).path, AttentionPath::sparse);
  }
}

TEST_F(MultiheadBeside, ModesAround) {
  for (const bool parts : {false, true}) {
    Trace trace(parts);
    LookUp look_up(*layer);
    const OpMode tracing(trace);
    const OpMode looking(look_up);
    const SparseAttentionScope scope(causal_window(), {.not_sparse = NotSparse::error});
    EXPECT_TRUE(same(std::get<0>(layer(x, x, x)).detach(), alone));
    EXPECT_EQ(look_up.products, 0);
  }
}

TEST_F(MultiheadBeside, ModesThatChangeTheWeightsLeaveItAlone) {
  const auto plain = std::get<0>(layer(x, x, x));
  DoubledSoftmax doubling;
  Tensor expected;
  {
    const OpMode mode(doubling);
    expected = std::get<0>(layer(x, x, x));
  }
  const SparseAttentionScope scope(causal_window(), {.not_sparse = NotSparse::allow});
  const OpMode mode(doubling);
  EXPECT_TRUE(same(std::get<0>(layer(x, x, x)).detach(), expected.detach()));
  ASSERT_EQ(scope.seen().size(), 1U);
  EXPECT_EQ(scope.seen()[0].reason, "its weights were asked for by aten::mul.Scalar");
}

TEST_F(MultiheadBeside, ScopesInside) {
  const SparseAttentionScope outer(mask::window(3), {.not_sparse = NotSparse::error});
  const SparseAttentionScope inner(causal_window(), {.not_sparse = NotSparse::error});
  EXPECT_TRUE(same(std::get<0>(layer(x, x, x)).detach(), alone));
  EXPECT_TRUE(outer.seen().empty());
  EXPECT_EQ(inner.seen().size(), 1U);
}

TEST_F(MultiheadBeside, AutocastGivesItsDtype) {
  const auto run = [&] {
    const Autocast autocast(at::kCPU, at::kBFloat16);
    return layer(x, x, x);
  };
  const auto [dense, dense_weights] = run();
  Tensor out, weights;
  {
    const SparseAttentionScope scope(mask::all(), {.not_sparse = NotSparse::error});
    std::tie(out, weights) = run();
  }
  EXPECT_EQ(out.scalar_type(), dense.scalar_type());
  EXPECT_EQ(weights.scalar_type(), dense_weights.scalar_type());
  EXPECT_LE((out - dense).abs().max().item<double>(), 2e-2);
  EXPECT_LE((weights - dense_weights).abs().max().item<double>(), 2e-2);
}

// --- Reports and errors --------------------------------------------------------------------------

TEST(SparseAttentionScope, SaysWhatItSaw) {
  const Parts parts;
  CollectWarnings warnings;
  const SparseAttentionScope scope(mask::causal());
  const auto q = at::randn({2, 4, 64, 8});
  for (int i = 0; i < 3; ++i) (void)at::scaled_dot_product_attention(q, q, q);
  for (int i = 0; i < 2; ++i) {
    (void)at::bmm(parts.scores().softmax(-1) * 2, parts.v);
    const auto weights = parts.scores().softmax(-1);
    (void)weights.max();
    (void)at::bmm(weights, parts.v);
    (void)at::bmm((parts.scores() * 2).softmax(-1), parts.v);
  }
  std::vector<std::string> lines;
  for (const auto& one : scope.seen()) {
    std::ostringstream line;
    line << one;
    lines.push_back(line.str());
  }
  EXPECT_EQ(lines, (std::vector<std::string>{
                       "3 x scaled_dot_product_attention [2, 4, 64, 64]: sparse, density 1",
                       "2 x bmm, softmax, bmm [4, 1, 40, 40]: left alone, because its weights were "
                       "asked for by aten::mul.Scalar",
                       "2 x bmm, softmax, bmm [4, 1, 40, 40]: left alone, because its weights were "
                       "asked for by aten::max",
                       "2 x bmm, softmax, bmm [4, 1, 40, 40]: left alone, because its scores were "
                       "not computed by a bmm and masks alone"}));
  ASSERT_EQ(warnings.texts.size(), 3U);
  EXPECT_EQ(warnings.texts[1],
            "an attention (bmm, softmax, bmm) inside a SparseAttentionScope cannot run sparse: its "
            "weights were asked for by aten::max; it would run as the model wrote it, without the "
            "scope's mask");
}

TEST(SparseAttentionScope, ThrowsWhereItIsAskedTo) {
  const Parts parts;
  const SparseAttentionScope scope(mask::causal(), {.not_sparse = NotSparse::error});
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] {
              const auto weights = parts.scores().softmax(-1);
              (void)weights.max();
            }),
            "an attention (bmm, softmax, bmm) inside a SparseAttentionScope cannot run sparse: its "
            "weights were asked for by aten::max; it would run as the model wrote it, without the "
            "scope's mask");
}

TEST(SparseAttentionScope, LeavesOutWhatIsNotMeant) {
  const Parts parts;
  const auto q = at::randn({2, 4, 40, 8}), k = at::randn({2, 4, 30, 8});
  const auto plain = at::scaled_dot_product_attention(q, k, k);
  const auto by_hand = at::bmm(parts.scores().softmax(-1), parts.v);
  const SparseAttentionScope scope(mask::causal(), {.where = [](const AttentionShape& shape) {
                                     return shape.queries == shape.keys && shape.batch == 2;
                                   }});
  EXPECT_TRUE(same(at::scaled_dot_product_attention(q, k, k), plain));
  EXPECT_TRUE(same(at::bmm(parts.scores().softmax(-1), parts.v).detach(), by_hand.detach()));
  ASSERT_EQ(scope.seen().size(), 2U);
  EXPECT_EQ(scope.seen()[0].reason, "`where` leaves it out");
}

TEST(SparseAttentionScope, RefusesWhatMakesNoSense) {
  EXPECT_EQ(
      message_of<c10::ValueError>(
          [] { const SparseAttentionScope scope(mask::causal(), {.heads = -1}); }),
      "SparseAttentionScopeOptions::heads must be the number of heads, or 0 if it is not said, "
      "but is -1");
  EXPECT_EQ(message_of<c10::ValueError>(
                [] { const SparseAttentionScope scope(mask::causal(), {.block_size = 48}); }),
            "SparseAttentionScopeOptions::block_size must be 32, 64 or 128, but is 48");
  const Parts parts;
  const auto attend = [&] { (void)at::bmm(parts.scores().softmax(-1), parts.v); };
  {
    const SparseAttentionScope scope(mask::causal(), {.heads = 3});
    EXPECT_EQ(
        message_of<c10::ValueError>(attend),
        "SparseAttentionScopeOptions::heads is 3, but an attention inside the scope has batch x "
        "heads = 4");
  }
  const SparseAttentionScope scope(mask::per_head({mask::causal(), mask::window(3)}));
  EXPECT_EQ(message_of<c10::ValueError>(attend),
            "the mask of a SparseAttentionScope differs between heads or batch entries, but the "
            "model's attention tells them as one number, 4; set SparseAttentionScopeOptions::heads "
            "to the model's heads");
}

TEST(SparseAttentionScope, PassesTheModelsErrorsOn) {
  const auto q = at::randn({2, 4, 8, 8}), k = at::randn({2, 4, 8, 4});
  const SparseAttentionScope scope(mask::causal());
  EXPECT_THROW((void)at::bmm(at::randn({2, 3, 4}), at::randn({2, 5, 3})), c10::Error);
  EXPECT_THROW((void)at::scaled_dot_product_attention(q, k, k), c10::Error);
  const auto plain = at::scaled_dot_product_attention(q, q, q);  // the scope still works
  EXPECT_EQ(scope.seen().size(), 1U);
}

TEST(SparseAttentionScope, EndsWhenAnExceptionPasses) {
  const auto q = at::randn({2, 4, 64, 8});
  const auto plain = at::scaled_dot_product_attention(q, q, q);
  try {
    const SparseAttentionScope scope(mask::causal());
    throw std::runtime_error("stop");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(same(at::scaled_dot_product_attention(q, q, q), plain));
}

TEST(SparseAttentionScope, LeavesTheBackwardInsideAlone) {
  at::manual_seed(4);
  torch::nn::MultiheadAttention layer(16, 4);
  const auto x = at::randn({40, 2, 16});
  const auto backward_inside = [&](bool inside) {
    layer->zero_grad();
    std::optional<SparseAttentionScope> scope(std::in_place, causal_window());
    const auto loss = std::get<0>(layer(x, x, x)).pow(2).sum();
    if (!inside) scope.reset();
    loss.backward();
    return layer->in_proj_weight.grad().clone();
  };
  EXPECT_TRUE(same(backward_inside(true), backward_inside(false)));
}

}  // namespace
}  // namespace torchlore
