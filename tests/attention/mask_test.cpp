#include "torchlore/attention/mask.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "test_paths.hpp"
#include "torchlore/attention/mask_presets.hpp"

namespace torchlore {
namespace {

using testing::message_of;

/// The mask as lines of '#' (visible) and '.'.
std::string picture(const MaskSpec& spec, const Where& where) {
  std::string text;
  for (int64_t q = 0; q < where.queries; ++q) {
    for (int64_t k = 0; k < where.keys; ++k) text += spec.visible(q, k, where) ? '#' : '.';
    text += '\n';
  }
  return text;
}

std::string picture(const MaskSpec& spec, int64_t n) {
  return picture(spec, {.queries = n, .keys = n});
}

std::vector<int64_t> keys_of(const MaskSpec& spec, int64_t query, const Where& where) {
  std::vector<int64_t> keys;
  for (int64_t k = 0; k < where.keys; ++k) {
    if (spec.visible(query, k, where)) keys.push_back(k);
  }
  return keys;
}

TEST(Mask, EachKindShowsWhatItsMakerSays) {
  EXPECT_EQ(picture(MaskSpec(), 2), "##\n##\n");
  EXPECT_EQ(picture(mask::causal(), 3), "#..\n##.\n###\n");
  EXPECT_EQ(picture(mask::window(2), 4), "##..\n###.\n.###\n..##\n");
  EXPECT_EQ(picture(mask::sinks(1), 3), "#..\n#..\n#..\n");
  EXPECT_EQ(picture(mask::global_tokens({1, 1, 9}), 3), ".#.\n###\n.#.\n");
  EXPECT_EQ(picture(mask::dilated(2, 2), 5), "#.#..\n.#.#.\n#.#.#\n.#.#.\n..#.#\n");
  EXPECT_EQ(picture(mask::strided(3, 1), 5), ".#..#\n.#..#\n.#..#\n.#..#\n.#..#\n");
  EXPECT_EQ(picture(mask::strided_runs(4, 1, 2), 6),
            ".##..#\n.##..#\n.##..#\n.##..#\n.##..#\n.##..#\n");
  EXPECT_EQ(picture(mask::log_sparse(), 6), "#.....\n##....\n###...\n.###..\n#.###.\n.#.###\n");
  EXPECT_EQ(picture(mask::documents({2, 0, 1}), 4), "##..\n##..\n..#.\n....\n");
  EXPECT_EQ(picture(mask::prefix_lm(2), 3), "##.\n##.\n###\n");
}

TEST(Mask, ComposesByAndOrNot) {
  EXPECT_EQ(picture(mask::causal() & (mask::window(2) | mask::sinks(1)), 4),
            "#...\n##..\n###.\n#.##\n");
  EXPECT_EQ(picture((!mask::causal()) & mask::window(2), 3), ".#.\n..#\n...\n");
  EXPECT_EQ(picture(!!mask::causal(), 2), "#.\n##\n");
}

TEST(Mask, AlignsQueriesWithTheFirstOrTheLastKeys) {
  const Where where{.queries = 2, .keys = 4};
  EXPECT_EQ(picture(mask::causal(Align::bottom_right), where), "###.\n####\n");
  EXPECT_EQ(picture(mask::causal(Align::top_left), where), "#...\n##..\n");
  EXPECT_EQ(picture((mask::causal() & mask::window(2)).aligned(Align::bottom_right), where),
            ".##.\n..##\n");
  const Where more_queries{.queries = 3, .keys = 1};
  EXPECT_EQ(picture(mask::causal(Align::bottom_right), more_queries), ".\n.\n#\n");
}

TEST(Mask, AlignedLeavesWhatWasSaid) {
  const auto spec = (mask::causal(Align::top_left) | !mask::window(2)).aligned(Align::bottom_right);
  EXPECT_EQ(to_string(spec), "causal(Align::top_left) | (!window(2, Align::bottom_right))");
  const auto random = mask::random_top_k(2, 1, {.always = mask::window(2)});
  EXPECT_EQ(to_string(random.aligned(Align::top_left)),
            "random_top_k(2, 1, {.align = Align::top_left, .always = window(2, Align::top_left)})");
}

TEST(Mask, DiffersByHeadAndBatchEntry) {
  const auto heads = mask::per_head({mask::causal(), mask::all()});
  EXPECT_EQ(picture(heads, {.queries = 2, .keys = 2, .head = 0}), "#.\n##\n");
  EXPECT_EQ(picture(heads, {.queries = 2, .keys = 2, .head = 1}), "##\n##\n");
  const auto padded = mask::padding({1, 2});
  EXPECT_EQ(picture(padded, {.queries = 1, .keys = 3, .batch = 0}), "#..\n");
  EXPECT_EQ(picture(padded, {.queries = 1, .keys = 3, .batch = 1}), "##.\n");
  const auto packed = mask::documents_per_batch({{1, 1}, {2}});
  EXPECT_EQ(picture(packed, {.queries = 2, .keys = 2, .batch = 0}), "#.\n.#\n");
  EXPECT_EQ(picture(packed, {.queries = 2, .keys = 2, .batch = 1}), "##\n##\n");
}

TEST(Mask, ReadsPredicatesAndTensors) {
  const auto by_head = mask::predicate(
      [](int64_t q, int64_t k, const Where& where) { return (q + k + where.head) % 2 == 0; },
      {.per_head = true});
  EXPECT_EQ(picture(by_head, {.queries = 2, .keys = 2, .head = 1}), ".#\n#.\n");
  auto tensor = at::eye(3).to(at::kBool);
  const auto dense = mask::dense(tensor.t());
  tensor.fill_(true);  // the mask has its own copy
  EXPECT_EQ(picture(dense, 3), "#..\n.#.\n..#\n");
}

TEST(Mask, RandomKeysAreDrawnAmongTheVisibleOnes) {
  const auto spec = mask::causal() & mask::random_top_k(5, 7);
  const Where where{.queries = 40, .keys = 40};
  for (int64_t q = 0; q < 40; ++q) {
    const auto keys = keys_of(spec, q, where);
    EXPECT_EQ(static_cast<int64_t>(keys.size()), std::min<int64_t>(5, q + 1));  // k is clamped
    EXPECT_EQ(keys.back(), q);  // the diagonal, and nothing after it
  }
  // Alone it draws among all keys, and its own row stays the same whoever asks.
  EXPECT_EQ(keys_of(mask::random_top_k(5, 7), 3, where).size(), 5u);
  const MaskSpec parts = mask::sinks(30) & (mask::causal() & mask::random_top_k(5, 7));
  const MaskSpec same = (mask::random_top_k(5, 7) & mask::sinks(30)) & mask::causal();
  EXPECT_EQ(picture(parts, 40), picture(same, 40));
  EXPECT_EQ(keys_of(parts, 39, where).size(), 5u);  // of the sinks; the diagonal is not visible
}

TEST(Mask, RandomKeysDependOnSeedHeadAndRowAlone) {
  const auto spec = mask::random_top_k(4, 1);
  const Where where{.queries = 30, .keys = 30};
  EXPECT_EQ(keys_of(spec, 5, where), keys_of(spec, 5, {.queries = 30, .keys = 30, .batch = 2}));
  EXPECT_NE(keys_of(spec, 5, where), keys_of(spec, 5, {.queries = 30, .keys = 30, .head = 1}));
  EXPECT_NE(keys_of(spec, 5, where), keys_of(mask::random_top_k(4, 2), 5, where));
  EXPECT_NE(keys_of(spec, 5, where), keys_of(spec, 6, where));
}

TEST(Mask, RandomKeysAreUniform) {
  // 3 of 7 visible keys, one of which is kept: each other one has the probability 2 / 6.
  const auto spec = mask::causal() & mask::random_top_k(3, 11);
  std::vector<int64_t> counts(7);
  constexpr int64_t kHeads = 6000;
  for (int64_t head = 0; head < kHeads; ++head) {
    for (const int64_t key : keys_of(spec, 6, {.queries = 7, .keys = 7, .head = head})) {
      ++counts[static_cast<size_t>(key)];
    }
  }
  EXPECT_EQ(counts[6], kHeads);
  for (size_t key = 0; key < 6; ++key) {
    EXPECT_NEAR(static_cast<double>(counts[key]), 2000, 5 * 36.5);  // sqrt(6000 · 1/3 · 2/3) = 36.5
  }
}

/// What a row of a line of tests/oracles/data/random_masks.txt should be.
struct OracleRow {
  std::string kind;
  uint64_t seed = 0;
  int64_t head = 0, count = 0, keep = 0, row = 0;
  std::vector<int64_t> chosen = {};
};

std::vector<OracleRow> oracle_rows() {
  std::ifstream file(TORCHLORE_TEST_DATA "/random_masks.txt");
  std::vector<OracleRow> rows;
  for (std::string line; std::getline(file, line);) {
    std::istringstream text(line);
    OracleRow row;
    text >> row.kind >> row.seed >> row.head >> row.count >> row.keep >> row.row;
    for (int64_t number = 0; text >> number;) row.chosen.push_back(number);
    rows.push_back(row);
  }
  return rows;
}

TEST(Mask, RandomChoicesAreThoseOfTheOracle) {
  const auto rows = oracle_rows();
  ASSERT_EQ(rows.size(), 96u);
  for (const auto& row : rows) {
    SCOPED_TRACE(row.kind + " " + std::to_string(row.seed) + " row " + std::to_string(row.row));
    const int64_t side = row.kind == "keys" ? 1 : 2;  // blocks of two tokens
    const mask::RandomOptions options{.keep_diagonal = row.keep != 0, .block = 2};
    const auto random = side == 1 ? mask::random_top_k(row.count, row.seed, options)
                                  : mask::random_blocks(row.count, row.seed, options);
    const Where where{.queries = 24 * side, .keys = 24 * side, .head = row.head};
    const int64_t last = row.row * side + side - 1;  // query of the block: sees all keys of the own
    std::vector<int64_t> chosen;
    for (const int64_t key : keys_of(mask::causal() & random, last, where)) {
      if (key % side == 0) chosen.push_back(key / side);
    }
    EXPECT_EQ(chosen, row.chosen);
  }
}

TEST(Mask, RandomKeysComeInSetsThatAreAllAsLikely) {
  const auto spec = mask::random_top_k(3, 5, {.keep_diagonal = false});
  std::map<std::vector<int64_t>, int64_t> counts;
  for (int64_t head = 0; head < 6000; ++head) {
    ++counts[keys_of(spec, 2, {.queries = 5, .keys = 5, .head = head})];
  }
  EXPECT_EQ(counts.size(), 10u);  // 3 of 5
  for (const auto& [keys, count] : counts) {
    EXPECT_EQ(keys.size(), 3u);
    EXPECT_NEAR(static_cast<double>(count), 600, 5 * 23.3);  // sqrt(6000 · 1/10 · 9/10) = 23.3
  }
}

TEST(Mask, RandomKeysOfNeighbouringRowsAreUnrelated) {
  const auto spec = mask::random_top_k(2, 5, {.keep_diagonal = false});
  const Where where{.queries = 300, .keys = 1000};
  int64_t close = 0;
  auto above = keys_of(spec, 0, where);
  for (int64_t q = 1; q < where.queries; ++q) {
    const auto keys = keys_of(spec, q, where);
    for (const int64_t a : above) {
      for (const int64_t b : keys) close += std::llabs(a - b) <= 1;
    }
    above = keys;
  }
  EXPECT_LT(close, 20);  // expected: 299 · 4 · 3 / 1000 = 3.6
}

TEST(Mask, RandomPartsDoNotNarrowEachOther) {
  const auto a = mask::random_top_k(6, 1, {.keep_diagonal = false});
  const auto b = mask::random_top_k(4, 2, {.keep_diagonal = false});
  const Where where{.queries = 16, .keys = 16};
  for (int64_t q = 0; q < 16; ++q) {
    const auto of_a = keys_of(a, q, where), of_b = keys_of(b, q, where);
    std::vector<int64_t> both;
    std::set_intersection(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(),
                          std::back_inserter(both));
    EXPECT_EQ(keys_of(a & b, q, where), both);
    EXPECT_EQ(keys_of((a | mask::sinks(0)) & b, q, where), both);
  }
}

TEST(Mask, RandomBlocksAreDrawnAmongTheVisibleOnes) {
  const mask::RandomOptions options{.block = 4};
  const auto spec = mask::causal() & mask::random_blocks(2, 3, options);
  const Where where{.queries = 32, .keys = 32};
  for (int64_t q = 0; q < 32; ++q) {
    std::vector<int64_t> blocks;
    for (const int64_t key : keys_of(spec, q, where)) {
      if (blocks.empty() || blocks.back() != key / 4) blocks.push_back(key / 4);
    }
    EXPECT_EQ(static_cast<int64_t>(blocks.size()), std::min<int64_t>(2, q / 4 + 1));
    EXPECT_EQ(blocks.back(), q / 4);
  }
}

TEST(Mask, RandomSparsityLeavesAShareOfTheVisibleBlocks) {
  const auto spec = mask::causal() & mask::random_sparsity(0.6, 3, {.block = 2});
  const Where where{.queries = 40, .keys = 40};
  for (int64_t q = 1; q < 40; q += 2) {  // the last query of a block sees all of its keys
    const auto kept = static_cast<int64_t>(keys_of(spec, q, where).size()) / 2;
    EXPECT_EQ(kept, std::max<int64_t>(1, std::llround(0.4 * static_cast<double>(q / 2 + 1))));
  }
}

TEST(Mask, KeepsWhatIsAlwaysKept) {
  const auto near = mask::window(3);
  const auto spec = mask::causal() & mask::random_top_k(4, 5, {.always = near});
  const Where where{.queries = 20, .keys = 20};
  for (int64_t q = 4; q < 20; ++q) {
    const auto keys = keys_of(spec, q, where);
    ASSERT_EQ(keys.size(), 4u);
    EXPECT_EQ(std::vector<int64_t>(keys.begin() + 1, keys.end()),
              (std::vector<int64_t>{q - 2, q - 1, q}));
  }
  EXPECT_EQ(message_of<c10::ValueError>(
                [] { mask::random_top_k(1, 1, {.always = mask::random_top_k(2, 2)}); }),
            "what a random mask always keeps must not be random, but is random_top_k(2, 2)");
}

TEST(Mask, IsWrittenAsItIsMade) {
  EXPECT_EQ(to_string(mask::causal() & (mask::window(512) | mask::sinks(4))),
            "causal() & (window(512) | sinks(4))");
  EXPECT_EQ(to_string(mask::all() & mask::causal()), "causal()");
  EXPECT_EQ(to_string(!(mask::dilated(3, 2) & mask::log_sparse())),
            "!(dilated(3, 2) & log_sparse())");
  EXPECT_EQ(to_string(mask::documents({3, 4}) | mask::strided(8) | mask::strided_runs(8, 1, 2)),
            "documents({3, 4}) | strided(8) | strided_runs(8, 1, 2)");
  EXPECT_EQ(to_string(mask::random_blocks(3, 1, {.keep_diagonal = false, .block = 32})),
            "random_blocks(3, 1, {.keep_diagonal = false, .block = 32})");
  EXPECT_EQ(to_string(mask::random_sparsity(0.6, 1)), "random_sparsity(0.6, 1)");
  EXPECT_EQ(to_string(mask::padding(std::vector<int64_t>(9, 1))),
            "padding({1, 1, 1, 1, 1, 1, 1, 1, … 9 in all})");
  EXPECT_EQ(to_string(mask::per_head({mask::all(), mask::global_tokens({0})})),
            "per_head({all(), global_tokens({0})})");
  EXPECT_EQ(to_string(mask::dense(at::ones({2, 3}, at::kBool))), "dense(2 x 3 tensor)");
  EXPECT_EQ(to_string(mask::documents_per_batch({{1}, {2, 3}})),
            "documents_per_batch({{1}, {2, 3}})");
}

TEST(Mask, RefusesArgumentsWithoutSense) {
  const auto message = [](auto f) { return message_of<c10::ValueError>(f); };
  EXPECT_EQ(message([] { mask::window(-3); }), "the size of a window must be 1 or more, but is -3");
  EXPECT_EQ(message([] { mask::sinks(-1); }), "the number of sinks must be 0 or more, but is -1");
  EXPECT_EQ(message([] { mask::padding({}); }),
            "padding() needs a length for each batch entry, or one for all");
  EXPECT_EQ(message([] {
              mask::padding({4, -2});
            }),
            "the length of a sequence must be 0 or more, but is -2");
  EXPECT_EQ(message([] { mask::global_tokens({-2}); }),
            "the position of a global token must be 0 or more, but is -2");
  EXPECT_EQ(message([] { mask::dilated(1, 0); }), "dilation must be 1 or more, but is 0");
  EXPECT_EQ(message([] { mask::strided(4, 4); }), "first must lie in [0, 4), the stride, but is 4");
  EXPECT_EQ(message([] { mask::strided_runs(4, 2, 3); }),
            "a run of 3 keys from 2 does not fit into a stride of 4");
  EXPECT_EQ(message([] {
              mask::documents({2, -1});
            }),
            "the length of a document must be 0 or more, but is -1");
  EXPECT_EQ(message([] { mask::documents_per_batch({}); }),
            "documents_per_batch() needs a list of lengths for each batch entry, or one for all");
  EXPECT_EQ(message([] { mask::prefix_lm(-1); }),
            "the length of a prefix must be 0 or more, but is -1");
  EXPECT_EQ(message([] { mask::per_head({}); }),
            "per_head() needs a mask for each head, but got none");
  EXPECT_EQ(message([] { mask::random_top_k(0, 1); }), "k must be 1 or more, but is 0");
  EXPECT_EQ(message([] { mask::random_blocks(0, 1); }),
            "the number of random blocks must be 1 or more, but is 0");
  EXPECT_EQ(message([] { mask::random_sparsity(1, 1); }), "sparsity must lie in [0, 1), but is 1");
  EXPECT_EQ(message([] { mask::random_blocks(1, 1, {.block = 0}); }),
            "block must be 1 or more, but is 0");
  EXPECT_EQ(message([] { mask::predicate(nullptr); }), "predicate() got an empty function");
  EXPECT_EQ(message([] { mask::dense(at::Tensor()); }), "dense() got an undefined tensor");
  EXPECT_EQ(
      message([] { mask::dense(at::ones({3}, at::kBool)); }),
      "dense() takes [queries, keys], [heads, queries, keys] or [batch, heads, queries, keys], "
      "but the shape is [3]");
  EXPECT_EQ(message_of<c10::TypeError>([] {
              mask::dense(at::ones({3, 3}));
            }),
            "dense() takes a bool tensor, true where visible, but got Float; compare first, as in "
            "mask > 0.5");
}

TEST(Mask, RefusesPairsThatAreNotThere) {
  const auto message = [](const MaskSpec& spec, int64_t q, int64_t k, const Where& where) {
    return message_of<c10::ValueError>([&] { spec.visible(q, k, where); });
  };
  const auto causal = mask::causal();
  EXPECT_EQ(message(causal, 3, 0, {.queries = 3, .keys = 3}), "there is no query 3 among 3");
  EXPECT_EQ(message(causal, 0, -1, {.queries = 3, .keys = 3}), "there is no key -1 among 3");
  EXPECT_EQ(message(causal, 0, 0, {.queries = 3, .keys = 5}),
            "causal() compares positions, and the 3 queries and 5 keys differ in number: say where "
            "the queries stand, as in spec.aligned(Align::bottom_right)");
  EXPECT_EQ(message(mask::per_head({causal, causal}), 0, 0, {.queries = 3, .keys = 3, .head = 2}),
            "there is no entry 2 in a mask for 2 batch entries or heads");
  EXPECT_EQ(message(mask::dense(at::ones({2, 2}, at::kBool)), 0, 0, {.queries = 3, .keys = 3}),
            "dense() holds a mask of 2 queries and 2 keys, but is asked for 3 and 3");
}

TEST(MaskPresets, AreMadeOfTheirParts) {
  EXPECT_EQ(to_string(mask::streaming()), "causal() & (window(1020) | sinks(4))");
  EXPECT_EQ(to_string(mask::long_document()), "window(257) | global_tokens({0})");
  EXPECT_EQ(to_string(mask::big_bird({.block = 2, .seed = 9})),
            "window(4) | global_tokens({0, 1, 2, 3}) | random_blocks(3, 9, {.block = 2})");
  EXPECT_EQ(to_string(mask::for_summarization()),
            "causal() & random_sparsity(0.6, 0, {.always = window(128) | sinks(4)})");
  EXPECT_EQ(to_string(mask::for_code()), "causal() & (window(512) | strided_runs(512, 448, 64))");
  EXPECT_EQ(message_of<c10::ValueError>([] { mask::for_code({.stride = 8, .summary = 9}); }),
            "summary must be at most stride, which is 8, but is 9");
}

}  // namespace
}  // namespace torchlore
