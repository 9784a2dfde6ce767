#include "../../src/attention/lowering.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "support/tolerance.hpp"
#include "torchlore/attention/block_layout.hpp"
#include "torchlore/attention/mask.hpp"
#include "torchlore/attention/sparse_attention.hpp"
#include "torchlore/core/philox.hpp"

namespace torchlore {
namespace {

using attention::lower;
using attention::Plan;
using attention::ShiftedPart;
using attention::TiledPart;

std::optional<Plan> plan_of(const MaskSpec& spec, int64_t queries, int64_t keys) {
  return lower(BlockLayout::build(spec, queries, keys));
}

/// How many of a plan's parts show each pair, [queries, keys]: read off the plan, pair by pair.
at::Tensor counts(const Plan& plan, int64_t queries, int64_t keys) {
  const auto shown = at::zeros({queries, keys}, at::kLong);
  auto count = shown.accessor<int64_t, 2>();
  const auto add_shifts = [&](const ShiftedPart& part) {
    for (const int64_t shift : part.shifts) {
      for (int64_t q = 0; q < queries; ++q) {
        if (q + shift >= 0 && q + shift < keys) ++count[q][q + shift];
      }
    }
  };
  const auto add_tiles = [&](const TiledPart& part) {
    const auto at = [](const std::vector<int64_t>& rows, int64_t row) {
      return rows.empty() ? row : rows.at(static_cast<size_t>(row));
    };
    const auto& tiles = *part.tiles;
    for (int64_t row = 0; row + 1 < static_cast<int64_t>(tiles.row_start.size()); ++row) {
      for (int32_t e = tiles.row_start[static_cast<size_t>(row)];
           e < tiles.row_start[static_cast<size_t>(row) + 1]; ++e) {
        const auto entry = static_cast<size_t>(e);
        for (int64_t i = 0; i < tiles.tile; ++i) {
          for (int64_t j = 0; j < tiles.tile; ++j) {
            const int64_t q = row * tiles.tile + i, k = tiles.column[entry] * tiles.tile + j;
            if (q >= tiles.queries || k >= tiles.keys) continue;
            const int32_t kind = tiles.kind[entry];
            const bool seen =
                kind == TileLayout::kFull ||
                (tiles.bits[static_cast<size_t>(kind)].by_query[static_cast<size_t>(i)] >> j & 1) !=
                    0;
            if (seen) ++count[at(part.queries, q)][at(part.keys, k)];
          }
        }
      }
    }
  };
  for (const auto& part : plan.parts) {
    if (const auto* shifted = std::get_if<ShiftedPart>(&part)) add_shifts(*shifted);
    if (const auto* tiled = std::get_if<TiledPart>(&part)) add_tiles(*tiled);
  }
  return shown;
}

at::Tensor visible(const MaskSpec& spec, int64_t queries, int64_t keys) {
  const auto seen = at::zeros({queries, keys}, at::kLong);
  auto value = seen.accessor<int64_t, 2>();
  for (int64_t q = 0; q < queries; ++q) {
    for (int64_t k = 0; k < keys; ++k) {
      value[q][k] = spec.visible(q, k, {.queries = queries, .keys = keys}) ? 1 : 0;
    }
  }
  return seen;
}

/// The masks that must have a plan for a thousand tokens.
std::vector<MaskSpec> lowered_masks() {
  using namespace mask;  // NOLINT: their names are what is tested
  std::vector<MaskSpec> masks{
      log_sparse(),
      log_sparse() | window(3),
      log_sparse() & window(40),
      (log_sparse() | window(70)) & causal(),
      log_sparse() & !window(2),
      log_sparse() | sinks(2),
      (log_sparse() | strided(64)) & causal(),
      causal() & dilated(4, 30),
      dilated(3, 50),
      dilated(300, 8),
      causal() & dilated(300, 7),
      dilated(40, 8) & !window(100),
      causal() & (dilated(300, 8) | sinks(4)),
      causal() & (dilated(300, 8) | window(20) | global_tokens({5, 77})),
      strided(16),
      strided(16, 3),
      causal() & strided(8, 7),
      causal() & window(200) & strided(5),
      strided(8) & documents({100, 33, 0, 90}),
      strided(8) & sinks(100) & padding({90}),
      causal() & (window(30) | strided(16, 15)),
      causal() & (window(30) | strided(16, 15) | sinks(3)),
      (causal() & strided(16)) | window(10),
      strided_runs(20, 17, 3),
      causal() & (window(30) | strided_runs(64, 56, 8)),
  };
  return masks;
}

TEST(LoweringTest, ShowsEachVisiblePairOnceAndNoOther) {
  int64_t plans = 0;
  for (const auto& spec : lowered_masks()) {
    for (const int64_t n : {1, 2, 63, 64, 65, 130, 257, 400}) {
      const auto plan = plan_of(spec, n, n);
      if (!plan) continue;
      ++plans;
      EXPECT_TRUE(at::equal(counts(*plan, n, n), visible(spec, n, n))) << spec << " at " << n;
    }
    EXPECT_TRUE(plan_of(spec, 1000, 1000)) << spec;
  }
  EXPECT_GT(plans, 60);
}

TEST(LoweringTest, KnowsBothAlignmentsOfUnequalLengths) {
  int64_t plans = 0;
  for (const auto& spec : lowered_masks()) {
    for (const auto align : {Align::top_left, Align::bottom_right}) {
      const auto aligned = spec.aligned(align);
      for (const auto& [queries, keys] :
           {std::pair<int64_t, int64_t>{1, 300}, {50, 333}, {333, 50}, {300, 299}, {190, 383}}) {
        const auto plan = plan_of(aligned, queries, keys);
        if (!plan) continue;
        ++plans;
        EXPECT_TRUE(at::equal(counts(*plan, queries, keys), visible(aligned, queries, keys)))
            << aligned << " with " << queries << " of " << keys;
      }
    }
  }
  EXPECT_GT(plans, 80);
}

/// A mask drawn from all kinds that a plan may be made of, and of compositions of them.
MaskSpec drawn(PhiloxEngine& random, int64_t depth) {
  const auto up_to = [&](int64_t most) {
    return static_cast<int64_t>(random.below(static_cast<uint64_t>(most))) + 1;
  };
  const auto part = [&] { return drawn(random, depth - 1); };
  using namespace mask;  // NOLINT: their names are what is tested
  switch (depth == 0 ? random.below(11) : 11 + random.below(5)) {
    case 0:
      return causal();
    case 1:
      return window(up_to(100));
    case 2:
      return dilated(up_to(60), up_to(40));
    case 3: {
      const int64_t stride = up_to(70);
      return strided(stride, up_to(stride) - 1);
    }
    case 4: {
      const int64_t stride = up_to(70), first = up_to(stride) - 1;
      return strided_runs(stride, first, up_to(stride - first));
    }
    case 5:
    case 6:
      return log_sparse();
    case 7:
      return sinks(up_to(20));
    case 8:
      return documents({up_to(200), up_to(200)});
    case 9:
      return padding({up_to(400)});
    case 10:
      return global_tokens({up_to(300)});
    case 11:
    case 12:
      return part() & part();
    case 13:
    case 14:
      return part() | part();
    default:
      return causal() & !part();
  }
}

TEST(LoweringTest, ShowsWhatRandomCompositionsShow) {
  PhiloxEngine random{PhiloxStream(1)};
  int64_t plans = 0;
  for (int i = 0; i < 1500; ++i) {
    const auto align = random.below(2) == 0 ? Align::top_left : Align::bottom_right;
    auto spec = drawn(random, static_cast<int64_t>(random.below(4))).aligned(align);
    if (random.below(2) == 0) spec = mask::causal(align) & spec;
    const auto queries = static_cast<int64_t>(random.below(400)) + 1;
    const auto keys = random.below(2) == 0 ? queries : static_cast<int64_t>(random.below(400)) + 1;
    const auto layout = BlockLayout::build(spec, queries, keys);
    const auto plan = lower(layout);
    if (!plan) continue;
    ++plans;
    ASSERT_TRUE(at::equal(counts(*plan, queries, keys), layout.to_dense()[0][0].to(at::kLong)))
        << spec << " with " << queries << " of " << keys;
  }
  EXPECT_GT(plans, 200);
}

TEST(LoweringTest, MakesThePlanThatFitsTheMask) {
  const auto kinds = [](const MaskSpec& spec) {
    std::string text;
    const auto plan = plan_of(spec, 4096, 4096);
    if (!plan) return std::string("tiles");
    for (const auto& part : plan->parts) {
      if (!text.empty()) text += ", ";
      if (const auto* shifted = std::get_if<ShiftedPart>(&part)) {
        text += std::to_string(shifted->shifts.size()) + " shifts";
      } else {
        const auto& tiled = std::get<TiledPart>(part);
        text += tiled.queries.empty() ? "" : "queries ";
        text += tiled.keys.empty() ? "" : "keys " + std::to_string(tiled.keys.size()) + " ";
        text += "tiles";
      }
    }
    return text;
  };
  using namespace mask;  // NOLINT: their names are what is tested
  EXPECT_EQ(kinds(log_sparse()), "13 shifts");
  EXPECT_EQ(kinds(causal() & (log_sparse() | window(200))), "tiles, 4 shifts");
  EXPECT_EQ(kinds(causal() & dilated(512, 4)), "queries keys 4096 tiles");
  EXPECT_EQ(kinds(causal() & dilated(16, 64)), "16 shifts");
  EXPECT_EQ(kinds(causal() & strided(32)), "keys 128 tiles");
  EXPECT_EQ(kinds(causal() & (window(128) | strided(32))), "keys 128 tiles, tiles");
  EXPECT_EQ(kinds(causal() & (log_sparse() | sinks(4))), "13 shifts, tiles");
}

TEST(LoweringTest, LeavesAllOtherMasksToTheirTiles) {
  using namespace mask;  // NOLINT: their names are what is tested
  const int64_t n = 400;
  const std::vector<MaskSpec> masks{
      all(),
      causal() & window(64),
      dilated(100, 1),
      strided(1),
      causal() & (window(30) | sinks(4)),
      random_top_k(5, 1) & log_sparse(),
      causal() & (log_sparse() | random_blocks(2, 1)),
      per_head({log_sparse(), causal()}),
      log_sparse() & predicate([](int64_t, int64_t, const Where&) { return true; }),
      !log_sparse(),
  };
  for (const auto& spec : masks) {
    const auto layout = BlockLayout::build(spec, n, n, {.heads = 2});
    EXPECT_FALSE(lower(layout)) << spec;
  }
  const auto by_batch = strided(16) & padding({10, 400});
  EXPECT_FALSE(lower(BlockLayout::build(by_batch, n, n, {.batch = 2})));
  EXPECT_FALSE(plan_of(log_sparse(), 0, 0));
}

/// Everything in float64, by the whole matrix.
struct Expected {
  at::Tensor out;
  at::Tensor log_sum_exp;
  std::vector<at::Tensor> gradients;  ///< of q, k, v
};

Expected expected(const std::vector<at::Tensor>& qkv, const at::Tensor& grad_out,
                  const at::Tensor& grad_sums, const at::Tensor& seen, double scale) {
  const auto& [q, k, v] = std::tie(qkv[0], qkv[1], qkv[2]);
  const auto hidden = seen == 0;
  const auto scores = (q.matmul(k.transpose(2, 3)) * scale)
                          .masked_fill(hidden, -std::numeric_limits<double>::infinity());
  const auto sums = scores.logsumexp(3);
  const auto p = (scores - sums.unsqueeze(3)).exp().masked_fill(hidden, 0);
  const auto out = p.matmul(v);
  const auto delta = ((grad_out * out).sum(3) - grad_sums).unsqueeze(3);
  const auto grad_scores = p * (grad_out.matmul(v.transpose(2, 3)) - delta) * scale;
  return {out,
          sums,
          {grad_scores.matmul(k), grad_scores.transpose(2, 3).matmul(q),
           p.transpose(2, 3).matmul(grad_out)}};
}

TEST(LoweredAttentionTest, EqualsTheWholeMatrix) {
  constexpr int64_t n = 150, dim = 20;
  for (const auto& spec : lowered_masks()) {
    const auto layout = BlockLayout::build(spec, n, n);
    if (!lower(layout)) continue;
    SCOPED_TRACE(::testing::Message() << spec);
    at::manual_seed(1);
    const auto random = [&](at::IntArrayRef shape) { return at::randn(shape, at::kDouble); };
    std::vector<at::Tensor> qkv;
    for (int i = 0; i < 3; ++i) qkv.push_back(random({1, n, 2, dim}).transpose(1, 2));
    const auto grad_out = random({1, 2, n, dim}), grad_sums = random({1, 2, n});
    const auto wanted = expected(qkv, grad_out, grad_sums, visible(spec, n, n), 0.3);
    for (auto& t : qkv) t.set_requires_grad(true);
    const auto [out, sums] =
        sparse_attention_with_lse(qkv[0], qkv[1], qkv[2], layout, {.scale = 0.3});
    EXPECT_EQ(out.strides(), qkv[0].strides());
    EXPECT_TRUE(testing::close(out, wanted.out));
    EXPECT_TRUE(testing::close(sums, wanted.log_sum_exp));
    const auto gradients = torch::autograd::grad({out, sums}, qkv, {grad_out, grad_sums});
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(testing::close(gradients[i], wanted.gradients[i])) << "input " << i;
    }
  }
}

TEST(LoweredAttentionTest, LeavesBiasAndDropoutToTheTiles) {
  constexpr int64_t n = 150;
  const auto layout = BlockLayout::build(mask::log_sparse(), n, n);
  at::manual_seed(1);
  const auto q = at::randn({1, 1, n, 8}, at::kFloat), bias = at::randn({n, n});
  const auto scores = (q.matmul(q.transpose(2, 3)) / std::sqrt(8.0) + bias)
                          .masked_fill(visible(mask::log_sparse(), n, n) == 0, -INFINITY);
  EXPECT_TRUE(testing::close(sparse_attention(q, q, q, layout, {.bias = bias}),
                             scores.softmax(3).matmul(q)));
  const auto dropped = sparse_attention(q, q, q, layout, {.dropout = 0.5});
  EXPECT_FALSE(at::allclose(dropped, sparse_attention(q, q, q, layout)));
}

}  // namespace
}  // namespace torchlore
