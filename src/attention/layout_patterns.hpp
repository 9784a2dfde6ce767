#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "bound_mask.hpp"
#include "torchlore/attention/block_layout.hpp"

namespace torchlore::detail {

/// What is worked out from a layout when it is first needed, by code that this header need not know.
struct Derived {
  std::once_flag once;
  std::shared_ptr<const void> value;
};

/// What a BlockLayout shares: the tiles, without the mask that they were built of.
struct LayoutPatterns {
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t block_size = 64;
  int64_t batch = 1;
  int64_t heads = 1;
  std::vector<TileLayout> patterns;  ///< all different
  /// [own_batch, own_heads]: the pattern of each; either is 1 where the mask does not depend on it
  std::vector<int32_t> index;
  int64_t own_batch = 1;
  int64_t own_heads = 1;
  mutable Derived plan;  ///< for the kernels; see planned_attention.cpp

  /// The pattern of a batch entry and head, of which there must be one.
  const TileLayout& at(int64_t batch_entry, int64_t head) const {
    const int64_t row = own_batch == 1 ? 0 : batch_entry;
    const int64_t column = own_heads == 1 ? 0 : head;
    return patterns[static_cast<size_t>(index[static_cast<size_t>(row * own_heads + column)])];
  }
};

/// The bits of a tile, by query or by key.
using Words = std::array<uint64_t, 64>;

/// The bits of the other way round.
Words transposed(Words words);

/// The tiles that a mask touches.
TileLayout build_tiles(BoundMask& mask, int64_t queries, int64_t keys, int64_t tile);

/// Fills the transpose of a layout from its rows.
void transpose_tiles(TileLayout& layout);

/// How many tiles a sequence of this length is cut into.
inline int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

/// Calls f(query tile, key tile, kind) for all tiles, row by row.
template <typename F>
void for_each_tile(const TileLayout& layout, const F& f) {
  for (size_t row = 0; row + 1 < layout.row_start.size(); ++row) {
    for (auto e = static_cast<size_t>(layout.row_start[row]);
         e < static_cast<size_t>(layout.row_start[row + 1]); ++e) {
      f(static_cast<int64_t>(row), int64_t{layout.column[e]}, layout.kind[e]);
    }
  }
}

/// The queries or keys of a tile, cut at the end of the sequence.
inline Span span_of_tile(int64_t index, int64_t tile, int64_t length) {
  return {index * tile, std::min((index + 1) * tile, length)};
}

}  // namespace torchlore::detail
