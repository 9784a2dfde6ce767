#pragma once

#include <cstdint>
#include <vector>

#include "key_ranges.hpp"
#include "mask_node.hpp"

/// What the random masks choose: by the layout's builder and by the mask's definition alike.
namespace torchlore::detail {

/// The keys that query `query` of a head sees, ascending.
/// @param visible the keys it may choose among.
/// @param always  of these, what it always keeps.
/// @param own     the key position of the query.
std::vector<int64_t> chosen_keys(const nodes::RandomTopK& of, const Ranges& visible,
                                 const Ranges& always, int64_t own, int64_t query, int64_t head);

/// The blocks of keys that block `block` of a head's queries sees, ascending.
/// @param visible the blocks it may choose among.
/// @param always  of these, what it always keeps.
/// @param own     the blocks that hold the key positions of its queries.
std::vector<int64_t> chosen_blocks(const nodes::RandomBlocks& of, const Ranges& visible,
                                   const Ranges& always, Span own, int64_t block, int64_t head);

/// The blocks that hold the key positions of a block's queries; empty if none does.
inline Span own_blocks(Span queries, int64_t offset, int64_t keys, int64_t block) {
  const Span positions = overlap({queries.begin + offset, queries.end + offset}, Span{0, keys});
  if (positions.empty()) return {};
  return {positions.begin / block, (positions.end - 1) / block + 1};
}

}  // namespace torchlore::detail
