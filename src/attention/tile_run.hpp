#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <vector>

#include "torchlore/attention/tile_layout.hpp"

/// The tiles of a layout as index tensors, a run of rows at a time.
namespace torchlore::attention {

/// Neighbouring rows of tiles, and their entries in the layout.
struct TileRun {
  int64_t first_row = 0, rows = 0;
  int64_t first_entry = 0, entries = 0;
};

/// Whether the scores of all tiles of `matrices` such patterns may be held in parts that share a run.
bool fits(const TileLayout& layout, int64_t matrices);

/// All rows of a layout, in runs whose scores take some ten megabytes; one row at least.
std::vector<TileRun> runs_of(const TileLayout& layout, int64_t matrices);

/// The c tiles of a run.
struct TileIndex {
  TileIndex(const TileLayout& layout, const TileRun& run, c10::Device device);

  at::Tensor row;           ///< [c] int64: the row of each tile, counted from the run's first
  at::Tensor query_tile;    ///< [c] int64
  at::Tensor key_tile;      ///< [c] int64
  at::Tensor hidden;        ///< [c, t, t] bool: pairs that are not visible
  at::Tensor idle_queries;  ///< [c, t, 1] bool: queries that see nothing of the tile
  at::Tensor idle_keys;     ///< [c, t, 1] bool: keys that nothing of the tile sees
  at::Tensor slots;         ///< [rows, most tiles of a row] int64: the tiles of each row, then c
};

/// Neighbouring batch entries and heads, of `all_heads` a batch entry.
struct HeadRange {
  int64_t batch = 0, batches = 1;
  int64_t head = 0, heads = 1;
  int64_t all_heads = 1;
};

/// [batches, heads, c, t, t] float32 on the host: what dropout multiplies the weights of tiles with.
at::Tensor dropout_factors(const TileIndex& tiles, const HeadRange& range, double dropout,
                           uint64_t seed);

}  // namespace torchlore::attention
