#include "torchlore/attention/block_layout.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <thread>

#include "support/files.hpp"
#include "support/message.hpp"
#include "support/random_masks.hpp"
#include "support/temporary_folder.hpp"
#include "torchlore/core/tensor_file.hpp"

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

TEST(BlockLayout, FullTilesEndWhereTheyMust) {
  const int64_t n = 256;
  const auto distance = at::arange(n).unsqueeze(1).sub(at::arange(n));
  for (int64_t size = 60; size < 200; ++size) {
    SCOPED_TRACE(size);
    const auto dense = [](const MaskSpec& spec) {
      return BlockLayout::build(spec, n, n).to_dense()[0][0];
    };
    const auto near = distance.abs().lt(size);
    ASSERT_TRUE(at::equal(dense(mask::window(size)), near));
    ASSERT_TRUE(at::equal(dense(mask::dilated(size, 1)), near));
    ASSERT_TRUE(at::equal(dense(!mask::window(size)), near.logical_not()));
    ASSERT_TRUE(at::equal(dense(mask::sinks(size)), at::arange(n).lt(size).expand({n, n})));
    const auto document = at::arange(n).div(size, "floor");
    ASSERT_TRUE(at::equal(dense(mask::documents({size, size, size, size, size})),
                          document.unsqueeze(1).eq(document)));
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

TEST(BlockLayout, TellsHowMuchIsTouched) {
  const auto causal = BlockLayout::build(mask::causal(), 192, 192);
  EXPECT_DOUBLE_EQ(causal.density(), 6.0 / 9);
  EXPECT_DOUBLE_EQ(causal.executed_area(), 6.0 / 9);
  EXPECT_DOUBLE_EQ(causal.visible_share(), 193.0 / 2 / 192);
  // Of a block of 128 only the touched tiles are computed.
  const auto large = BlockLayout::build(mask::causal(), 192, 192, {.block_size = 128});
  EXPECT_DOUBLE_EQ(large.density(), 3.0 / 4);
  EXPECT_DOUBLE_EQ(large.executed_area(), 6.0 / 9);
  // The last tiles are cut: 3 x 4 blocks of 32 for 70 x 100 pairs.
  const auto ragged = BlockLayout::build(mask::sinks(1), 70, 100, {.block_size = 32});
  EXPECT_DOUBLE_EQ(ragged.density(), 3.0 / 12);
  EXPECT_DOUBLE_EQ(ragged.executed_area(), 0.32);
  EXPECT_DOUBLE_EQ(ragged.visible_share(), 0.01);
  // The mean over heads.
  const auto heads = mask::per_head({mask::all(), mask::sinks(64)});
  EXPECT_DOUBLE_EQ(BlockLayout::build(heads, 128, 128, {.heads = 2}).density(), 0.75);
}

TEST(BlockLayout, NeedsLittleForALongSequence) {
  const int64_t n = 131'072;
  const auto spec =
      mask::causal() & (mask::window(512) | mask::sinks(4) | mask::random_blocks(8, 1));
  const auto& tiles = BlockLayout::build(spec, n, n).pattern(0, 0);
  // 9 tiles of the window, 1 of the sinks, and at most 8 at random, the own one being among them.
  EXPECT_LE(tiles.column.size(), 17u * 2048);
  EXPECT_GE(tiles.column.size(), 16u * 2048);  // few of them meet the window
  EXPECT_EQ(tiles.bits.size(), 3u);            // the diagonal, the window's far edge, the sinks
}

TEST(BlockLayout, ServesEmptyAndTinySequences) {
  for (const auto& spec : {mask::causal(), mask::log_sparse() | mask::strided(3), !mask::window(4),
                           mask::random_top_k(3, 1), mask::random_blocks(3, 1),
                           mask::global_tokens({0, 4}), mask::documents({1, 5})}) {
    for (const int64_t n : {0, 1}) {
      SCOPED_TRACE(to_string(spec) + " " + std::to_string(n));
      const auto layout = BlockLayout::build(spec, n, n);
      expect_sound(layout.pattern(0, 0), by_definition(spec, {.queries = n, .keys = n}));
      EXPECT_EQ(layout.to_dense().sizes(), at::IntArrayRef({1, 1, n, n}));
    }
  }
  const auto no_keys = BlockLayout::build(mask::sinks(3), 5, 0);
  EXPECT_EQ(no_keys.density(), 0);
  EXPECT_EQ(no_keys.draw_text(), "\n\n\n\n\n");
}

TEST(BlockLayout, ServesBatchesAndHeads) {
  const auto spec =
      mask::padding({3, 70}) & mask::per_head({mask::causal(), mask::all(), mask::causal()});
  const auto layout = BlockLayout::build(spec, 70, 70, {.batch = 2, .heads = 3});
  EXPECT_EQ(layout.batch(), 2);
  EXPECT_EQ(layout.heads(), 3);
  for (int64_t batch = 0; batch < 2; ++batch) {
    for (int64_t head = 0; head < 3; ++head) {
      const Where where{.queries = 70, .keys = 70, .batch = batch, .head = head};
      EXPECT_TRUE(at::equal(layout.to_dense()[batch][head], by_definition(spec, where)));
    }
  }
  EXPECT_EQ(&layout.pattern(1, 0), &layout.pattern(1, 2));  // what is equal is kept once
  // A mask that does not tell them apart is built once; one for a single entry serves all.
  const auto same = BlockLayout::build(mask::causal(), 70, 70, {.batch = 2, .heads = 3});
  EXPECT_EQ(&same.pattern(0, 0), &same.pattern(1, 2));
  EXPECT_NO_THROW(BlockLayout::build(mask::causal(), 70, 70).pattern(17, 40));
  const auto of_heads = mask::random_top_k(2, 1);
  const auto random = BlockLayout::build(of_heads, 70, 70, {.batch = 2, .heads = 3});
  EXPECT_EQ(&random.pattern(0, 1), &random.pattern(1, 1));
  EXPECT_NE(&random.pattern(0, 1), &random.pattern(0, 2));
}

TEST(BlockLayout, ReadsTensorsOfAllShapes) {
  const auto values = at::rand({2, 3, 33, 50}).lt(0.1);
  const auto check = [&](const at::Tensor& tensor) {
    const auto layout = BlockLayout::build(mask::dense(tensor), 33, 50, {.batch = 2, .heads = 3});
    EXPECT_TRUE(at::equal(layout.to_dense(), tensor.expand({2, 3, 33, 50})));
  };
  check(values);
  check(values[0][0]);
  check(values[0]);
  check(values.narrow(1, 1, 1));
  check(values.narrow(0, 1, 1));
}

TEST(BlockLayout, IsTheSameAtAnyNumberOfThreads) {
  const auto build = [](int threads) {
    const int before = at::get_num_threads();
    at::set_num_threads(threads);
    const auto spec = mask::causal() & (mask::random_top_k(9, 3) | mask::random_blocks(2, 4));
    auto dense = BlockLayout::build(spec, 300, 300, {.heads = 8}).to_dense();
    at::set_num_threads(before);
    return dense;
  };
  const auto one = build(1);
  EXPECT_TRUE(at::equal(one, build(2)));
  EXPECT_TRUE(at::equal(one, build(5)));
}

TEST(BlockLayout, IsBuiltOnceForEachMask) {
  int asked = 0;
  const auto spec = mask::predicate([&asked](int64_t, int64_t, const Where&) {
    ++asked;
    return true;
  });
  const auto first = BlockLayout::build(spec, 8, 8);
  EXPECT_EQ(asked, 64);
  const MaskSpec copy = spec;
  EXPECT_EQ(&BlockLayout::build(copy, 8, 8).pattern(0, 0), &first.pattern(0, 0));
  EXPECT_EQ(asked, 64);
  BlockLayout::build(spec, 8, 8, {.block_size = 32});
  EXPECT_EQ(asked, 128);
  for (int64_t n = 9; n < 13; ++n) BlockLayout::build(spec, n, n);  // pushes the first one out
  asked = 0;
  BlockLayout::build(spec, 8, 8);
  EXPECT_EQ(asked, 64);
}

TEST(BlockLayout, APredicateIsAskedOnlyWhereTheRestLeavesABlock) {
  int asked = 0;
  const auto count = mask::predicate([&asked](int64_t, int64_t, const Where&) {
    ++asked;
    return true;
  });
  BlockLayout::build(count & mask::documents({64, 64, 64}), 192, 192);
  EXPECT_EQ(asked, 3 * 64 * 64);
  // Also where it stands first, inside a disjunction, and a random part chooses among what it shows.
  asked = 0;
  const auto among = (count | mask::sinks(0)) & mask::documents({64, 64, 64});
  BlockLayout::build(among & mask::random_top_k(3, 1), 192, 192);
  EXPECT_EQ(asked, 2 * 3 * 64 * 64);
}

TEST(BlockLayout, APredicateIsAskedOnTheCallersThread) {
  const int before = at::get_num_threads();
  at::set_num_threads(4);
  std::set<std::thread::id> threads;
  const auto spec = mask::predicate(
      [&threads](int64_t, int64_t, const Where&) {
        threads.insert(std::this_thread::get_id());
        return true;
      },
      {.per_head = true});
  BlockLayout::build(spec & mask::random_top_k(2, 1), 40, 40, {.heads = 8});
  at::set_num_threads(before);
  EXPECT_EQ(threads, std::set{std::this_thread::get_id()});
}

TEST(BlockLayout, APredicateMayThrow) {
  int left = 5000;
  const auto spec = mask::causal() & mask::predicate([&left](int64_t, int64_t, const Where&) {
                      if (left-- == 0) throw std::runtime_error("no more");
                      return true;
                    });
  EXPECT_THROW(BlockLayout::build(spec, 128, 128), std::runtime_error);
  left = 100'000;  // nothing of the failed one was kept
  EXPECT_TRUE(at::equal(BlockLayout::build(spec, 128, 128).to_dense(),
                        BlockLayout::build(mask::causal(), 128, 128).to_dense()));
}

TEST(BlockLayout, RefusesWhatDoesNotFit) {
  const auto message = [](const MaskSpec& spec, int64_t queries, int64_t keys,
                          const BlockLayoutOptions& options = {}) {
    return message_of<c10::ValueError>([&] { BlockLayout::build(spec, queries, keys, options); });
  };
  const auto causal = mask::causal();
  EXPECT_EQ(message(causal, -1, 2), "the number of queries must lie in [0, 2^31), but is -1");
  EXPECT_EQ(message(causal, 1, int64_t{1} << 31),
            "the number of keys must lie in [0, 2^31), but is 2147483648");
  EXPECT_EQ(message(causal, 1, 1, {.block_size = 48}),
            "block_size must be 32, 64 or 128, but is 48");
  EXPECT_EQ(message(causal, 1, 1, {.batch = 0}), "batch must be 1 or more, but is 0");
  EXPECT_EQ(message(causal, 1, 1, {.heads = 0}), "heads must be 1 or more, but is 0");
  EXPECT_EQ(message(mask::sinks(1) | !mask::log_sparse(), 1, 2),
            "log_sparse() compares positions, and the 1 queries and 2 keys differ in number: say "
            "where the queries stand, as in spec.aligned(Align::bottom_right)");
  EXPECT_EQ(message(mask::per_head({causal, causal}), 4, 4),
            "per_head() is for 2 heads, but the layout for 1; set BlockLayoutOptions::heads to 2");
  EXPECT_EQ(message(mask::documents_per_batch({{1}, {1}}), 4, 4, {.batch = 3}),
            "documents_per_batch() is for 2 batch entries, but the layout for 3; set "
            "BlockLayoutOptions::batch "
            "to 2");
  EXPECT_EQ(message(mask::dense(at::ones({4, 5}, at::kBool)), 4, 4),
            "dense() holds a mask of 4 queries and 5 keys, but is asked for 4 and 4");
  EXPECT_NO_THROW(BlockLayout::build(mask::random_top_k(2, 1, {.keep_diagonal = false}), 4, 5));
  const auto layout = BlockLayout::build(causal, 4, 4, {.batch = 2, .heads = 3});
  EXPECT_EQ(message_of<c10::ValueError>([&] { layout.pattern(2, 0); }),
            "there is no batch entry 2 in a layout for 2");
  EXPECT_EQ(message_of<c10::ValueError>([&] { layout.pattern(0, -1); }),
            "there is no head -1 in a layout for 3");
}

TEST(BlockLayout, DrawsItself) {
  const auto layout = BlockLayout::build(mask::causal() & mask::window(2), 4, 4);
  EXPECT_EQ(layout.draw_text(), "#   \n##  \n ## \n  ##\n");
  EXPECT_EQ(layout.draw_text({.columns = 2}), "+ \n:+\n");  // 3, 0, 1 and 3 of 4 pairs
  EXPECT_EQ(message_of<c10::ValueError>([&] { layout.draw_text({.columns = -1}); }),
            "columns must be 0 or more, but is -1");
  // 200 keys in cells of 5 would cut the tiles; of 8 they do not.
  std::string all;
  for (int row = 0; row < 25; ++row) all += std::string(25, '#') + '\n';
  EXPECT_EQ(BlockLayout::build(mask::all(), 200, 200).draw_text({.columns = 40}), all);
  // 64 tiles in 8 cells of 8 x 8 tiles; the last cell of a ragged length is judged by what it has.
  const auto large = BlockLayout::build(mask::causal(), 4000, 4000);
  EXPECT_EQ(large.draw_text({.columns = 8}),
            "+       \n#+      \n##+     \n###+    \n####+   \n#####+  \n######+ \n#######+\n");
  const auto svg = BlockLayout::build((!mask::causal()) & mask::all(), 2, 2).draw_svg();
  EXPECT_EQ(svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 2 2\" "
            "shape-rendering=\"crispEdges\">\n<title>!causal(), 2 x 2</title>\n"
            "<rect width=\"100%\" height=\"100%\" fill=\"#f4f4f4\"/>\n<g fill=\"#123a6b\">\n"
            "<rect x=\"1\" y=\"0\" width=\"1\" height=\"1\" fill-opacity=\"1.00\"/>\n"
            "</g>\n</svg>\n");
}

BlockLayout reloaded(const BlockLayout& layout) {
  const testing::TemporaryFolder folder;
  layout.save(folder / "layout.safetensors");
  return BlockLayout::load(folder / "layout.safetensors");
}

TEST(BlockLayout, IsReadAsItWasWritten) {
  const auto some = mask::dense(at::rand({40, 70}).lt(0.5));
  const std::vector<MaskSpec> specs = {
      mask::causal(Align::bottom_right) & (mask::window(9, Align::top_left) | mask::sinks(2)),
      mask::per_head({mask::all(), !mask::dilated(3, 5), mask::strided(4, 1)}) | mask::log_sparse(),
      mask::documents({12, 0, 30}) | mask::global_tokens({1, 5}) | mask::strided_runs(8, 2, 3),
      mask::documents_per_batch({{12}, {5, 6}}) & mask::padding({30, 60}),
      mask::random_top_k(4, ~uint64_t{0}, {.always = mask::window(2)}) & some,
      mask::random_blocks(2, 3, {.keep_diagonal = false, .block = 16}) |
          mask::random_sparsity(0.3, 4, {.align = Align::top_left}),
      mask::prefix_lm(5)};
  for (const auto& of : specs) {
    const auto spec = of.aligned(Align::bottom_right);
    SCOPED_TRACE(to_string(spec));
    const auto layout =
        BlockLayout::build(spec, 40, 70, {.block_size = 32, .batch = 2, .heads = 3});
    const auto again = reloaded(layout);
    EXPECT_EQ(to_string(again.spec()), to_string(spec));
    EXPECT_TRUE(at::equal(again.to_dense(), layout.to_dense()));
    EXPECT_EQ(again.block_size(), 32);
    for (int64_t head = 0; head < 3; ++head) {
      expect_sound(again.pattern(1, head), layout.to_dense()[1][head]);
    }
    // The mask that was read means what the written one means.
    const MaskSpec fresh = again.spec() & mask::all().aligned(Align::top_left);
    EXPECT_TRUE(at::equal(
        BlockLayout::build(fresh | !mask::all(), 40, 70, {.batch = 2, .heads = 3}).to_dense(),
        layout.to_dense()));
  }
}

TEST(BlockLayout, APredicateIsReadAsWhatItSaw) {
  const auto spec = mask::predicate(
      [](int64_t q, int64_t k, const Where& where) { return (q * k + where.head) % 3 == 0; },
      {.per_head = true});
  const auto layout = BlockLayout::build(spec, 70, 50, {.heads = 2});
  const auto again = reloaded(reloaded(layout));
  EXPECT_TRUE(at::equal(again.to_dense(), layout.to_dense()));
  EXPECT_EQ(to_string(again.spec()), "loaded()");
  const Where where{.queries = 70, .keys = 50, .head = 1};
  EXPECT_TRUE(at::equal(by_definition(again.spec(), where), layout.to_dense()[0][1]));
  EXPECT_EQ(
      message_of<c10::ValueError>([&] { BlockLayout::build(again.spec(), 71, 50, {.heads = 2}); }),
      "the mask was read from a file for 70 queries and 50 keys, but is asked for 71 and 50");
}

TEST(BlockLayout, RefusesDamagedFiles) {
  const testing::TemporaryFolder folder;
  const auto path = folder / "layout.safetensors";
  BlockLayout::build(mask::causal(), 100, 100).save(path);
  const auto file = TensorFile::open(path);
  const auto message = [&](const std::function<void(StateDict&, Metadata&)>& damage) {
    auto tensors = file.tensors();
    for (auto& [name, tensor] : tensors) tensor = tensor.clone();
    auto metadata = file.metadata();
    damage(tensors, metadata);
    write_tensors(path, tensors, metadata);
    const auto text = message_of<c10::ValueError>([&] { BlockLayout::load(path); });
    const auto start = "'" + path.string() + "' holds no sound layout: ";
    EXPECT_EQ(text.substr(0, start.size()), start);
    return text.substr(std::min(start.size(), text.size()));
  };
  const auto set = [&](const char* name, int64_t place, int64_t value) {
    return message([=](StateDict& tensors, Metadata&) { tensors[name].view(-1)[place] = value; });
  };
  EXPECT_EQ(message([](StateDict&, Metadata& data) { data["format"] = "other"; }),
            "it was not written by BlockLayout::save");
  EXPECT_EQ(message([](StateDict&, Metadata& data) { data["version"] = "9"; }),
            "it was written by another version");
  EXPECT_EQ(message([](StateDict& tensors, Metadata&) { tensors.erase("index"); }),
            "there is no tensor 'index'");
  EXPECT_EQ(message([](StateDict& tensors, Metadata&) {
              tensors["index"] = tensors["index"].to(at::kLong);
            }),
            "'index' has another dtype or shape");
  EXPECT_EQ(message([](StateDict& tensors, Metadata&) {
              tensors["pattern/0/bits"] = tensors["pattern/0/bits"].narrow(1, 0, 63).contiguous();
            }),
            "bits have 63 words instead of 64");
  EXPECT_EQ(set("sizes", 0, -1), "a length is out of range");
  EXPECT_EQ(set("sizes", 2, 96), "its block size is 96");
  EXPECT_EQ(set("sizes", 6, 3), "its batch or heads are out of range");
  EXPECT_EQ(set("sizes", 0, 300), "its rows do not fit its tiles");
  EXPECT_EQ(set("index", 0, 1), "pattern 1 is out of order");
  EXPECT_EQ(set("pattern/0/row_start", 1, 9), "its rows do not fit its tiles");
  EXPECT_EQ(set("pattern/0/column", 2, 2), "the columns of row 1 are not ascending");
  EXPECT_EQ(set("pattern/0/column", 1, -1), "the columns of row 1 are not ascending");
  EXPECT_EQ(set("pattern/0/column", 1, 1), "the columns of row 1 are not ascending");
  EXPECT_EQ(set("pattern/0/kind", 0, 7), "tile 0, 0 has no bits");
  EXPECT_EQ(set("pattern/0/kind", 2, 0), "the bits of tile 1, 1 are empty or lie past the end");
  EXPECT_EQ(
      message([](StateDict&, Metadata& data) { data["mask"] = "{\"kind\":\"or\",\"parts\":[]}"; }),
      "it has a or without parts");
  EXPECT_EQ(message([](StateDict&, Metadata& data) {
              data["mask"] = "{\"kind\":\"strided\",\"stride\":0,\"first\":0}";
            }),
            "stride must be 1 or more, but is 0");
  EXPECT_EQ(
      message([](StateDict&, Metadata& data) {
        data["mask"] =
            "{\"kind\":\"and\",\"parts\":[{\"kind\":\"new\",\"parts\":[{\"kind\":\"all\"}]}]}";
      }),
      "it has a part of kind 'new', which this version does not know");
  std::string deep = "{\"kind\":\"all\"}";
  for (int i = 0; i < 300; ++i) deep = "{\"kind\":\"not\",\"parts\":[" + deep + "]}";
  EXPECT_EQ(message([&](StateDict&, Metadata& data) { data["mask"] = deep; }),
            "its parts are nested more than 200 deep");
  EXPECT_EQ(message([](StateDict&, Metadata& data) { data["mask"] = "{"; }).substr(0, 30),
            "its mask cannot be read: [json");
}

TEST(BlockLayout, RandomDamageIsRefusedOrHarmless) {
  const testing::TemporaryFolder folder;
  const auto path = folder / "layout.safetensors";
  const auto spec = (mask::causal() & mask::random_top_k(5, 1)).aligned(Align::bottom_right);
  BlockLayout::build(spec, 100, 130, {.heads = 2}).save(path);
  const auto whole = testing::bytes_of(path);
  RandomMasks random(1, 1, 1, Align::top_left);
  const auto size = static_cast<int64_t>(whole.size());
  int read = 0;
  for (int i = 0; i < 150; ++i) {
    auto bytes = whole;
    for (int64_t flips = random.below(3); flips >= 0; --flips) {
      bytes[static_cast<size_t>(random.below(size))] = static_cast<char>(random.below(256));
    }
    testing::write_bytes(path, bytes);
    try {
      const auto layout = BlockLayout::load(path);
      ++read;
      const auto& tiles = layout.pattern(0, 1);  // what the kernels do with it
      for (const int32_t column : tiles.column)
        ASSERT_LT(column, std::ssize(tiles.column_start) - 1);
      for (const int32_t row : tiles.row) ASSERT_LT(row, std::ssize(tiles.row_start) - 1);
      for (const int32_t kind : tiles.kind)
        ASSERT_LT(kind, static_cast<int32_t>(tiles.bits.size()));
    } catch (const c10::Error&) {
    }
  }
  EXPECT_GT(read, 0);  // a flipped bit inside a tile is another mask
}

}  // namespace
}  // namespace torchlore
