#include <limits>
#include <optional>
#include <unordered_map>

#include "layout_patterns.hpp"

namespace torchlore::detail {
namespace {

uint64_t hash_of(const Words& words) {
  uint64_t hash = 0;
  for (const uint64_t word : words) {
    hash = (hash ^ word) * 0x9E37'79B9'7F4A'7C15;
    hash ^= hash >> 32;
  }
  return hash;
}

/// The bits of partial tiles, each kept once.
class BitsTable {
 public:
  explicit BitsTable(std::vector<TileBits>& bits) : bits_(bits) {}

  /// The index of these bits, by query.
  int32_t add(const Words& words) {
    const uint64_t hash = hash_of(words);
    const auto [first, last] = known_.equal_range(hash);
    for (auto it = first; it != last; ++it) {
      if (bits_[static_cast<size_t>(it->second)].by_query == words) return it->second;
    }
    const auto index = static_cast<int32_t>(bits_.size());
    bits_.push_back({.by_key = transposed(words), .by_query = words});
    known_.emplace(hash, index);
    return index;
  }

 private:
  std::vector<TileBits>& bits_;
  std::unordered_multimap<uint64_t, int32_t> known_;
};

/// Walks along a row of tiles and tells which of them a row of ranges covers whole.
class Cover {
 public:
  explicit Cover(const Ranges& ranges) : next_(ranges.begin()), end_(ranges.end()) {}

  /// Whether the keys are all in one range; must be asked from left to right.
  bool holds(Span keys) {
    while (next_ != end_ && next_->end < keys.end) ++next_;
    return next_ != end_ && next_->begin <= keys.begin;
  }

 private:
  Ranges::const_iterator next_, end_;
};

class Builder {
 public:
  Builder(BoundMask& mask, TileLayout& layout) : mask_(mask), layout_(layout), bits_(layout.bits) {}

  void add_row(int64_t row) {
    const Span queries = span_of_tile(row, layout_.tile, layout_.queries);
    const Span all = {0, layout_.keys};
    const Ranges maybe = mask_.any(queries, all);
    const Ranges sure = maybe.empty() ? Ranges() : mask_.every(queries, all);
    Cover full(sure);
    int64_t next = 0;  // tiles before it are done
    for (const Span span : maybe) {
      const int64_t end = tiles_of(span.end, layout_.tile);
      for (next = std::max(next, span.begin / layout_.tile); next < end; ++next) {
        const Span keys = span_of_tile(next, layout_.tile, layout_.keys);
        add_tile(next, full.holds(keys) ? TileLayout::kFull : kind_of(queries, keys));
      }
    }
    layout_.row_start.push_back(static_cast<int32_t>(layout_.column.size()));
  }

 private:
  void add_tile(int64_t column, std::optional<int32_t> kind) {
    if (!kind) return;
    TORCH_CHECK_VALUE(layout_.column.size() < std::numeric_limits<int32_t>::max(),
                      "the mask touches more than 2^31 tiles");
    layout_.column.push_back(static_cast<int32_t>(column));
    layout_.kind.push_back(*kind);
  }

  /// By the pairs; none if none is visible.
  std::optional<int32_t> kind_of(Span queries, Span keys) {
    Words words{};
    mask_.words(queries, keys, words.data());
    const auto end = words.begin() + queries.size();
    const auto all = [&](uint64_t value) {
      return std::all_of(words.begin(), end, [&](uint64_t word) { return word == value; });
    };
    if (all(0)) return std::nullopt;
    return all(shared_bits(keys, keys)) ? TileLayout::kFull : bits_.add(words);
  }

  BoundMask& mask_;
  TileLayout& layout_;
  BitsTable bits_;
};

}  // namespace

Words transposed(Words words) {
  // Swaps blocks of bits off the diagonal: of 32, then 16, …, then single ones.
  uint64_t mask = 0x0000'0000'FFFF'FFFF;
  for (size_t width = 32; width != 0; width >>= 1, mask ^= mask << width) {
    for (size_t i = 0; i < 64; i = ((i | width) + 1) & ~width) {
      const uint64_t swap = (words[i] >> width ^ words[i | width]) & mask;
      words[i] ^= swap << width;
      words[i | width] ^= swap;
    }
  }
  return words;
}

TileLayout build_tiles(BoundMask& mask, int64_t queries, int64_t keys, int64_t tile) {
  TileLayout layout;
  layout.queries = queries;
  layout.keys = keys;
  layout.tile = tile;
  layout.row_start = {0};
  Builder builder(mask, layout);
  const int64_t rows = tiles_of(queries, tile);
  layout.row_start.reserve(static_cast<size_t>(rows) + 1);
  for (int64_t row = 0; row < rows; ++row) builder.add_row(row);
  layout.column.shrink_to_fit();
  layout.kind.shrink_to_fit();
  layout.bits.shrink_to_fit();
  transpose_tiles(layout);
  return layout;
}

void transpose_tiles(TileLayout& layout) {
  const auto columns = static_cast<size_t>(tiles_of(layout.keys, layout.tile));
  layout.column_start.assign(columns + 1, 0);
  for (const int32_t column : layout.column) ++layout.column_start[static_cast<size_t>(column) + 1];
  for (size_t i = 0; i < columns; ++i) layout.column_start[i + 1] += layout.column_start[i];
  layout.row.resize(layout.column.size());
  layout.column_kind.resize(layout.column.size());
  std::vector<int32_t> next(layout.column_start.begin(), layout.column_start.end() - 1);
  for_each_tile(layout, [&](int64_t row, int64_t column, int32_t kind) {
    const auto entry = static_cast<size_t>(next[static_cast<size_t>(column)]++);
    layout.row[entry] = static_cast<int32_t>(row);
    layout.column_kind[entry] = kind;
  });
}

}  // namespace torchlore::detail
