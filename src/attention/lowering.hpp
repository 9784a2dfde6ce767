#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "shifted_attention.hpp"
#include "torchlore/attention/block_layout.hpp"
#include "torchlore/attention/tile_layout.hpp"

/// Masks that blocks cannot express well, as plans that compute little more than what is visible.
namespace torchlore::attention {

/// Keys at a short list of distances: row by row, along shifts.
struct ShiftedPart {
  KeyShifts shifts;
};

/// Tiles of rows that are first taken together: of every r-th token, say.
struct TiledPart {
  std::vector<int64_t> queries =
      {};                          ///< query of each row, all of them in some order; empty: as is
  std::vector<int64_t> keys = {};  ///< key of each row, some of them in some order; empty: as is
  std::shared_ptr<const TileLayout> tiles = nullptr;  ///< of these rows
};

/// Attention as a sum of parts, none of which shows a pair that another one shows; together they show
/// what the mask shows.
struct Plan {
  std::vector<std::variant<ShiftedPart, TiledPart>> parts;
};

/// The plan for a layout, where one is clearly cheaper than the layout's own tiles; the same for all
/// batch entries and heads.
///
/// - Distances (log_sparse, dilated, with causal, window, all and each other by `&`, `|` and `!`) become
///   shifts where they are few and far between, tiles where they are neighbours, and tiles of every
///   r-th token where all are multiples of r.
/// - strided and strided_runs, alone or narrowed by causal, window, sinks, padding or documents, take their keys together.
/// - One of these in a union with other masks, perhaps narrowed together with them, is a part of its
///   own; the others are tiles from which its pairs are taken away.
/// @return none for all other masks, and where a mask differs between batch entries or heads.
/// @note O(distances + T + tiles of the plan).
std::optional<Plan> lower(const BlockLayout& layout);

}  // namespace torchlore::attention
