#include "torchlore/attention/block_layout.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <stdexcept>

#include "support/message.hpp"
#include "support/random_masks.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::RandomMasks;

at::Tensor by_rule(int64_t queries, int64_t keys,
                   const std::function<bool(int64_t query, int64_t key)>& rule) {
  auto dense = at::zeros({queries, keys}, at::kBool);
  auto data = dense.accessor<bool, 2>();
  for (int64_t q = 0; q < queries; ++q) {
    for (int64_t k = 0; k < keys; ++k) data[q][k] = rule(q, k);
  }
  return dense;
}

/// The pairs as the mask's definition has them.
at::Tensor by_definition(const MaskSpec& spec, const Where& where) {
  return by_rule(where.queries, where.keys,
                 [&](int64_t q, int64_t k) { return spec.visible(q, k, where); });
}

int64_t tiles(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

/// Everything that TileLayout promises, against the pairs.
void expect_sound(const TileLayout& layout, const at::Tensor& dense) {
  const int64_t rows = tiles(layout.queries, layout.tile);
  const int64_t columns = tiles(layout.keys, layout.tile);
  ASSERT_EQ(static_cast<int64_t>(layout.row_start.size()), rows + 1);
  ASSERT_EQ(static_cast<int64_t>(layout.column_start.size()), columns + 1);
  std::set<std::array<uint64_t, 64>> different;
  for (const auto& bits : layout.bits) EXPECT_TRUE(different.insert(bits.by_query).second);

  std::vector<std::array<int32_t, 3>> by_row, by_column;
  for (int32_t r = 0; r < rows; ++r) {
    for (auto e = static_cast<size_t>(layout.row_start[static_cast<size_t>(r)]);
         e < static_cast<size_t>(layout.row_start[static_cast<size_t>(r) + 1]); ++e) {
      by_row.push_back({r, layout.column[e], layout.kind[e]});
    }
  }
  for (int32_t c = 0; c < columns; ++c) {
    for (auto e = static_cast<size_t>(layout.column_start[static_cast<size_t>(c)]);
         e < static_cast<size_t>(layout.column_start[static_cast<size_t>(c) + 1]); ++e) {
      by_column.push_back({layout.row[e], c, layout.column_kind[e]});
    }
  }
  ASSERT_EQ(by_row.size(), layout.column.size());
  EXPECT_TRUE(std::is_sorted(by_row.begin(), by_row.end()));
  std::sort(by_column.begin(), by_column.end());
  EXPECT_EQ(by_row, by_column);

  std::vector<std::array<int32_t, 3>> expected;
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t c = 0; c < columns; ++c) {
      const auto part =
          dense.narrow(0, r * layout.tile, std::min(layout.tile, layout.queries - r * layout.tile))
              .narrow(1, c * layout.tile, std::min(layout.tile, layout.keys - c * layout.tile));
      const auto seen = part.sum().item<int64_t>();
      if (seen == 0) continue;
      const auto at = std::find_if(by_row.begin(), by_row.end(), [&](const auto& entry) {
        return entry[0] == r && entry[1] == c;
      });
      ASSERT_NE(at, by_row.end()) << "tile " << r << ", " << c << " is missing";
      expected.push_back({r, c, (*at)[2]});
      ASSERT_EQ((*at)[2] == TileLayout::kFull, seen == part.numel());
      if ((*at)[2] == TileLayout::kFull) continue;
      const auto& bits = layout.bits.at(static_cast<size_t>((*at)[2]));
      const auto pairs = part.accessor<bool, 2>();
      for (int64_t q = 0; q < 64; ++q) {
        for (int64_t k = 0; k < 64; ++k) {
          const bool want = q < part.size(0) && k < part.size(1) && pairs[q][k];
          ASSERT_EQ((bits.by_query[static_cast<size_t>(q)] >> k & 1) != 0, want);
          ASSERT_EQ((bits.by_key[static_cast<size_t>(k)] >> q & 1) != 0, want);
        }
      }
    }
  }
  EXPECT_EQ(by_row, expected);
}

TEST(BlockLayout, EqualsTheRuleForRandomMasks) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    RandomMasks lengths(seed + 1000, 1, 1, Align::top_left);
    const int64_t queries = 1 + lengths.below(260);
    const int64_t keys = lengths.below(2) == 0 ? queries : 1 + lengths.below(260);
    const Align align = lengths.below(2) == 0 ? Align::top_left : Align::bottom_right;
    const auto ruled = RandomMasks(seed, queries, keys, align).draw(3);
    SCOPED_TRACE(to_string(ruled.spec) + " seed " + std::to_string(seed));
    const int64_t block = int64_t{32} << lengths.below(3);
    const auto layout = BlockLayout::build(ruled.spec, queries, keys, {.block_size = block});
    const auto expected = by_rule(queries, keys, ruled.rule);
    ASSERT_TRUE(at::equal(layout.to_dense()[0][0], expected));
    expect_sound(layout.pattern(0, 0), expected);
    const Where where{.queries = queries, .keys = keys};
    for (int i = 0; i < 50; ++i) {
      const int64_t q = lengths.below(queries);
      const int64_t k = lengths.below(keys);
      ASSERT_EQ(ruled.spec.visible(q, k, where), ruled.rule(q, k)) << q << ", " << k;
    }
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(BlockLayout, EqualsTheDefinitionForRandomChoices) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    RandomMasks draw(seed, 75, 90, Align::bottom_right);
    const mask::RandomOptions options{
        .keep_diagonal = draw.below(2) == 0,
        .align = Align::bottom_right,
        .block = 8 + draw.below(12),
        .always = draw.below(2) == 0 ? std::optional(draw.draw(1).spec) : std::nullopt};
    const auto keys = mask::random_top_k(1 + draw.below(20), seed, options);
    const auto blocks = mask::random_blocks(1 + draw.below(3), seed, options);
    const auto share =
        mask::random_sparsity(0.1 * static_cast<double>(draw.below(10)), seed, options);
    const auto a = draw.draw(1).spec;
    const auto b = draw.draw(1).spec;
    const std::array specs = {a & keys, b & (a | blocks), (!(a & share)) & b,
                              (keys | b) & blocks & a};
    const Where where{
        .queries = 75, .keys = 90, .batch = 0, .head = static_cast<int64_t>(seed % 3)};
    const auto& spec = specs[seed % specs.size()];
    SCOPED_TRACE(to_string(spec));
    const auto layout = BlockLayout::build(spec, 75, 90, {.block_size = 32, .heads = 3});
    const auto expected = by_definition(spec, where);
    ASSERT_TRUE(at::equal(layout.to_dense()[0][where.head], expected));
    expect_sound(layout.pattern(0, where.head), expected);
  }
}

}  // namespace
}  // namespace torchlore
