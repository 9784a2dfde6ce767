#pragma once

#include <cstdint>
#include <memory>

#include "key_ranges.hpp"
#include "mask_node.hpp"

namespace torchlore::detail {

/// A mask for sequences of given lengths and one batch entry and head, which can be asked about a
/// whole row of blocks at once. Not for several threads: random masks keep what they chose last.
///
/// `any` and `every` bound the truth from both sides, each to its own, so that they can be combined
/// like the masks themselves; `words` is exact. Blocks between the bounds are found by their words.
class BoundMask {
 public:
  virtual ~BoundMask() = default;

  /// Keys, within `keys`, outside of which none of the queries sees any. For one query exactly those
  /// that it sees.
  virtual Ranges any(Span queries, Span keys) = 0;
  /// Keys, within `keys`, that all of the queries see. For one query exactly those that it sees.
  virtual Ranges every(Span queries, Span keys) = 0;
  /// Bit j of words[i]: query queries.begin + i sees key keys.begin + j. At most 64 of each; the
  /// other bits are 0.
  virtual void words(Span queries, Span keys, uint64_t* words) = 0;
};

/// Binds a mask. `check_fits` must have passed; the node must outlive the result.
std::unique_ptr<BoundMask> bind_mask(const MaskNode& node, const Where& where);

/// Binds masks that must all hold; none: everything is visible.
std::unique_ptr<BoundMask> bind_all(const Among& nodes, const Where& where);

/// The bits [bits.begin, bits.end) of a word, [0, 64].
inline uint64_t bits_of(Span bits) {
  if (bits.empty()) return 0;
  const auto up_to = [](int64_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; };
  return up_to(bits.end) & ~up_to(bits.begin);
}

/// The bits of the numbers that two spans share, counted from the second one's begin.
inline uint64_t shared_bits(Span span, Span keys) {
  const Span both = overlap(span, keys);
  return bits_of({both.begin - keys.begin, both.end - keys.begin});
}

}  // namespace torchlore::detail
