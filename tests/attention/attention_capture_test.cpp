#include "torchlore/attention/attention_capture.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/attention/sparse_attention.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/memory/checkpoint.hpp"

namespace torchlore {
namespace {

using at::Tensor;
using testing::message_of;
using testing::same;

constexpr double kHidden = -std::numeric_limits<double>::infinity();

void expect_near(const Tensor& a, const Tensor& b, double tolerance = 1e-5) {
  ASSERT_EQ(a.sizes(), b.sizes());
  EXPECT_LE((a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>(), tolerance);
}

/// What the summaries must be, in float64 and one query at a time.
void expect_summaries(const CapturedAttention& one, const Tensor& probabilities, int64_t size) {
  const auto p = probabilities.to(at::kDouble);
  expect_near(one.entropy, -(p * (p + 1e-300).log()).sum(-1));
  const auto sorted = std::get<0>(p.sort(-1, /*descending=*/true));
  expect_near(one.top_probabilities, sorted.narrow(-1, 0, one.top_probabilities.size(-1)));
  expect_near(p.gather(-1, one.top_keys), one.top_probabilities);
  for (int64_t i = 0; i < one.block_mass.size(2); ++i) {
    for (int64_t j = 0; j < one.block_mass.size(3); ++j) {
      const auto queries = p.slice(2, i * size, (i + 1) * size);
      expect_near(one.block_mass.select(2, i).select(2, j),
                  queries.slice(3, j * size, (j + 1) * size).sum(-1).mean(-1));
    }
  }
  expect_near(one.block_mass.sum(-1), at::ones({1}).expand(one.block_mass.sum(-1).sizes()), 1e-5);
  expect_near(one.probabilities, p);
}

constexpr int64_t kSize = 32;
AttentionCaptureOptions everything() {
  return {.probabilities = true, .top_k = 3, .block_size = kSize};
}

struct Case {
  std::string name;
  std::function<void()> run;
  Tensor probabilities;
  bool sparse = false;
};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

std::vector<Case> cases() {
  at::manual_seed(3);
  constexpr int64_t n = 70;
  const auto q = at::randn({2, 4, n, 8}), k = at::randn({2, 4, n, 8});
  const auto few = at::randn({2, 2, n, 8});
  const auto mask = at::randn({n, n});
  const auto kept = at::rand({2, 1, n, n}) < 0.5;
  const auto seen = kept | at::eye(n, at::kBool);
  const auto causal = at::ones({n, n}, at::kBool).tril();
  const auto by = [&](const Tensor& keys, const Tensor& added, double scale) {
    const auto scores = at::matmul(q.to(at::kDouble), keys.to(at::kDouble).transpose(2, 3));
    return (scores * scale + added).softmax(-1);
  };
  const auto hide = [](const Tensor& shown) {
    return at::zeros(shown.sizes()).masked_fill(shown.logical_not(), kHidden);
  };
  const double scale = 1 / std::sqrt(8.0);
  const auto spec = mask::causal() & mask::window(9);
  const auto layout = BlockLayout::build(spec, n, n);
  const auto shown = layout.to_dense();
  const auto slopes = at::rand({4});
  const auto place = at::arange(n);
  const auto line = -slopes.view({4, 1, 1}) * (place.unsqueeze(1) - place).abs();
  torch::nn::MultiheadAttention layer(torch::nn::MultiheadAttentionOptions(8, 4));
  const Tensor no_padding;
  const auto x = at::randn({n, 2, 8});
  const auto own = hide(causal);
  const auto of_layer =
      std::get<1>(layer(x, x, x, no_padding, true, own, /*average_attn_weights=*/false)).detach();
  const auto flat = of_layer.view({8, 1, n, n});
  const auto none = at::zeros({1});
  return {
      {"dense", [=] { (void)at::scaled_dot_product_attention(q, k, k); }, by(k, none, scale)},
      {"causal", [=] { (void)at::scaled_dot_product_attention(q, k, k, {}, 0, true); },
       by(k, hide(causal), scale)},
      {"added_mask_and_scale",
       [=] { (void)at::scaled_dot_product_attention(q, k, k, mask, 0.0, false, 0.5); }, by(k, mask, 0.5)},
      {"bool_mask", [=] { (void)at::scaled_dot_product_attention(q, k, k, seen); },
       by(k, hide(seen), scale)},
      {"dropout", [=] { (void)at::scaled_dot_product_attention(q, k, k, {}, 0.5); }, by(k, none, scale)},
      {"grouped_heads",
       [=] { (void)at::scaled_dot_product_attention(q, few, few, {}, 0, false, {}, true); },
       by(few.repeat_interleave(2, 1), none, scale)},
      {"sparse", [=] { (void)sparse_attention(q, k, k, layout, {.allow_dense = false}); },
       by(k, hide(shown), scale), true},
      {"sparse_with_bias_and_slopes",
       [=] {
         (void)sparse_attention(q, k, k, layout,
                          {.scale = 0.5,
                           .bias = mask.view({1, 1, n, n}),
                           .alibi_slopes = slopes,
                           .allow_dense = false});
       },
       by(k, hide(shown) + mask + line, 0.5), true},
      {"in_a_scope",
       [=] {
         const SparseAttentionScope scope(spec, {.allow_dense = false});
         (void)at::scaled_dot_product_attention(q, k, k);
       },
       by(k, hide(shown), scale), true},
      {"multihead", [=]() mutable { layer(x, x, x, no_padding, true, own); }, flat},
      {"multihead_in_a_scope",
       [=]() mutable {
         const SparseAttentionScope scope(mask::causal(), {.allow_dense = false});
         layer(x, x, x);
       },
       flat, true},
      {"by_hand",
       [=] {
         const auto scores = at::matmul(q, k.transpose(2, 3)) * scale + own;
         (void)at::matmul(at::dropout(scores.softmax(-1), 0.5, true), k);
       },
       by(k, own, scale)},
  };
}

class Captured : public ::testing::TestWithParam<Case> {};

TEST_P(Captured, SummariesAreThoseOfTheProbabilities) {
  const auto& row = GetParam();
  const AttentionCapture capture(everything());
  row.run();
  const auto records = capture.records();
  ASSERT_EQ(records.size(), 1U);
  EXPECT_EQ(records[0].sparse, row.sparse);
  expect_summaries(records[0], row.probabilities, kSize);
}

INSTANTIATE_TEST_SUITE_P(Calls, Captured, ::testing::ValuesIn(cases()),
                         [](const auto& row) { return row.param.name; });

struct Model {
  Model() {
    at::manual_seed(5);
    layer = torch::nn::MultiheadAttention(torch::nn::MultiheadAttentionOptions(8, 2));
  }
  Tensor forward(Tensor x) {
    for (int i = 0; i < 3; ++i) x = x + std::get<0>(layer(x, x, x));
    return x;
  }
  torch::nn::MultiheadAttention layer{nullptr};
};

TEST(AttentionCapture, LeavesResultsAsTheyAreAndCountsLayers) {
  Model model;
  const auto x = at::randn({20, 2, 8});
  const auto plain = model.forward(x);
  AttentionCapture capture({.layers = 3});
  EXPECT_TRUE(same(model.forward(x).detach(), plain.detach()));
  (void)model.forward(x);
  const auto records = capture.records();
  ASSERT_EQ(records.size(), 6U);
  for (int64_t i = 0; i < 6; ++i) {
    const auto& one = records[static_cast<size_t>(i)];
    EXPECT_EQ(one.layer, i % 3);
    EXPECT_FALSE(one.probabilities.defined() || one.top_keys.defined() || one.block_mass.defined());
    EXPECT_FALSE(one.entropy.requires_grad());
  }
  capture.clear();
  EXPECT_TRUE(capture.records().empty());
  (void)model.forward(x);
  EXPECT_EQ(capture.records().at(0).layer, 0);
}

TEST(AttentionCapture, StaysBelowItsLimit) {
  const auto q = at::randn({1, 1, 64, 8});
  // Probabilities take 16 KiB, an entropy 256 bytes.
  const AttentionCapture capture({.limit = Bytes(17'000), .probabilities = true});
  for (int i = 0; i < 4; ++i) (void)at::scaled_dot_product_attention(q, q, q);
  const auto records = capture.records();
  ASSERT_EQ(records.size(), 2U);
  EXPECT_TRUE(records[0].probabilities.defined());
  EXPECT_FALSE(records[1].probabilities.defined());
  EXPECT_EQ(capture.dropped(), 2);
}

TEST(AttentionCapture, DoesNotRecordARecomputation) {
  Model model;
  const auto x = at::randn({20, 2, 8}).requires_grad_();
  const AttentionCapture capture;
  checkpoint([&](const Tensor& t) { return model.forward(t); }, x).sum().backward();
  EXPECT_EQ(capture.records().size(), 3U);
}

TEST(AttentionCapture, RefusesWhatMakesNoSense) {
  EXPECT_EQ(message_of<c10::ValueError>([] { const AttentionCapture capture({.top_k = -1}); }),
            "AttentionCaptureOptions::top_k must be 0 or more, but is -1");
  const SparseAttentionScope scope(mask::causal());
  EXPECT_EQ(
      message_of([] { const AttentionCapture capture; }),
      "AttentionCapture was opened inside an OpMode whose handler changes results, such as a "
      "SparseAttentionScope, and would not see what becomes of an attention; open the capture "
      "first and the other inside it");
}

}  // namespace
}  // namespace torchlore
