#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "torchlore/attention/mask.hpp"
#include "torchlore/attention/tile_layout.hpp"

namespace torchlore {
namespace detail {
struct LayoutPatterns;
}

/// Options of `BlockLayout::build`.
struct BlockLayoutOptions {
  int64_t block_size = 64;  ///< queries and keys of a block: 32, 64, or 128 (four tiles of 64)
  int64_t batch = 1;        ///< batch entries; 1 serves a batch of any size
  int64_t heads = 1;        ///< heads of the queries; 1 serves any number of heads
};

/// Which part of a layout is drawn, and how large.
struct DrawOptions {
  int64_t batch = 0;    ///< the batch entry
  int64_t head = 0;     ///< the head
  int64_t columns = 0;  ///< at most so many cells a row; 0: 64 in text, 256 in SVG
};

/// Which blocks of an attention matrix are computed, and which pairs of them are visible: what a
/// mask means for sequences of given lengths. Cheap to copy and immutable; safe to use from several
/// threads.
///
/// ```cpp
/// auto layout = BlockLayout::build(mask::causal() & mask::window(512), n, n);
/// ```
class BlockLayout {
 public:
  /// The layout of a mask. The mask keeps the last few layouts that were built of it or of its
  /// copies, so asking again costs nothing.
  /// @param spec    the mask.
  /// @param queries length of the query sequence: [0, 2^31).
  /// @param keys    length of the key sequence: [0, 2^31).
  /// @param options see there.
  /// @throws c10::ValueError if a number is out of range, the mask is for other lengths, heads or
  ///         batch sizes, or an alignment is missing. What a predicate throws passes through.
  /// @note O(blocks touched) in time and memory, whatever the lengths; a predicate or a tensor is
  ///       read for each pair of the blocks that the rest of its conjunction leaves, and once more
  ///       for each random part that chooses among what it shows. One kibibyte for each
  ///       different partial tile.
  static BlockLayout build(const MaskSpec& spec, int64_t queries, int64_t keys,
                           const BlockLayoutOptions& options = {});

  /// Length of the query sequence.
  int64_t queries() const;
  /// Length of the key sequence.
  int64_t keys() const;
  /// Queries and keys of a block.
  int64_t block_size() const;
  /// Batch entries; 1 serves a batch of any size.
  int64_t batch() const;
  /// Heads; 1 serves any number of heads.
  int64_t heads() const;

  /// The tiles of a batch entry and head. Where the mask does not tell them apart, and where
  /// `batch()` or `heads()` is 1, they share one.
  /// @throws c10::ValueError if there is no such batch entry or head.
  const TileLayout& pattern(int64_t batch, int64_t head) const;

  /// The share of blocks with a visible pair, [0, 1]: no kernel can be faster than dense attention by
  /// more than 1 over it. 0 for empty sequences.
  double density() const;
  /// The share of the pairs that lie in a computed tile, [0, 1].
  double executed_area() const;
  /// The share of the pairs that are visible, [0, 1].
  double visible_share() const;

  /// The mask that it was built of.
  const MaskSpec& spec() const;

  /// The tiles of all batch entries and heads, for the library's own use.
  const detail::LayoutPatterns& patterns() const { return *patterns_; }

  /// A boolean tensor [batch(), heads(), queries(), keys()], true where visible: for tests.
  at::Tensor to_dense() const;

  /// Writes it to a safetensors file, mask included. @throws c10::Error if writing fails.
  void save(const std::filesystem::path& path) const;
  /// Reads what `save` wrote. A predicate cannot be written: where the mask had one, `spec()` is a
  /// predicate that looks pairs up in the layout.
  /// @throws c10::ValueError if the file is not of this kind or damaged.
  static BlockLayout load(const std::filesystem::path& path);

  /// A picture in characters, one line of cells per row of queries, the more visible the darker:
  /// `' '` (nothing), `.`, `:`, `+`, `#` (everything).
  std::string draw_text(const DrawOptions& options = {}) const;
  /// The same as a scalable vector graphic.
  std::string draw_svg(const DrawOptions& options = {}) const;

 private:
  BlockLayout(MaskSpec spec, std::shared_ptr<const detail::LayoutPatterns> patterns);
  MaskSpec spec_;
  std::shared_ptr<const detail::LayoutPatterns> patterns_;
};

}  // namespace torchlore
