#pragma once

#include <array>
#include <cstdint>
#include <vector>

/// Which tiles of an attention matrix are computed: plain data, as the kernels read it.
namespace torchlore {

/// Which (query, key) pairs of one partial tile are visible, both ways round, so that no kernel has
/// to transpose bits: bit q of `by_key[k]` equals bit k of `by_query[q]`. Positions count from the
/// tile's first query and first key; a tile of 32 uses the first 32 words and bits.
struct TileBits {
  std::array<uint64_t, 64> by_key{};    ///< one word per key of the tile; bit q: query q sees it
  std::array<uint64_t, 64> by_query{};  ///< one word per query of the tile; bit k: it sees key k

  /// Whether all pairs are the same.
  bool operator==(const TileBits&) const = default;
};

/// The tiles that one pattern touches (of one batch entry and head, or of all), as compressed sparse
/// rows and their transpose. A tile that is not listed is not computed.
///
/// Tile (i, j) holds the queries [i·tile, (i+1)·tile) and the keys [j·tile, (j+1)·tile), cut at the
/// ends of the sequences. Entry e of row i, row_start[i] <= e < row_start[i+1], is tile
/// (i, column[e]) of kind `kind[e]`.
struct TileLayout {
  int64_t queries = 0;  ///< length of the query sequence
  int64_t keys = 0;     ///< length of the key sequence
  int64_t tile = 64;    ///< 32 or 64; a block of 128 is its four tiles of 64

  /// The kind of a tile whose pairs are all visible, up to the ends of the sequences.
  static constexpr int32_t kFull = -1;

  std::vector<int32_t> row_start;  ///< one per query tile, and the number of entries
  std::vector<int32_t> column;     ///< the key tile of each entry; ascending within a row
  std::vector<int32_t> kind;       ///< kFull, or an index into `bits`

  std::vector<int32_t> column_start;  ///< one per key tile, and the number of entries
  std::vector<int32_t> row;           ///< the query tile of each entry; ascending within a column
  std::vector<int32_t> column_kind;   ///< `kind` in the order of `row`

  std::vector<TileBits> bits;  ///< all different; pairs beyond the ends of the sequences are 0
};

}  // namespace torchlore
