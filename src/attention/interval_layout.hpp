#pragma once

#include <utility>
#include <vector>

#include "layout_patterns.hpp"
#include "leaf_masks.hpp"

namespace torchlore::attention {

/// The tiles of a pattern in which each query sees neighbouring keys.
/// @param spans one per query; neither end ever moves back from a query to the next, also where they
///              are empty (or end before they begin).
inline TileLayout interval_layout(int64_t keys, std::vector<detail::Span> spans) {
  class Rows final : public detail::BandMask {
   public:
    explicit Rows(std::vector<detail::Span> spans) : spans_(std::move(spans)) {}

   private:
    detail::Span row(int64_t query) const override { return spans_[static_cast<size_t>(query)]; }
    std::vector<detail::Span> spans_;
  };
  constexpr int64_t tile = 64;
  const auto queries = static_cast<int64_t>(spans.size());
  Rows rows(std::move(spans));
  return detail::build_tiles(rows, queries, keys, tile);
}

}  // namespace torchlore::attention
