#include "random_masks.hpp"

#include <array>

#include "random_choice.hpp"

namespace torchlore::detail {
namespace {

/// Whether any of the queries sees any of the keys.
bool has_visible_pair(BoundMask& mask, Span queries, Span keys) {
  std::array<uint64_t, 64> words{};
  for (int64_t query = queries.begin; query < queries.end; query += 64) {
    const Span rows = {query, std::min(query + 64, queries.end)};
    for (int64_t key = keys.begin; key < keys.end; key += 64) {
      mask.words(rows, {key, std::min(key + 64, keys.end)}, words.data());
      const auto end = words.begin() + rows.size();
      if (std::any_of(words.begin(), end, [](uint64_t word) { return word != 0; })) return true;
    }
  }
  return false;
}

}  // namespace

void RandomTopKMask::prepare(Span queries) {
  if (prepared_ == queries) return;
  prepared_ = {};
  chosen_.clear();
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    const Span row = {query, query + 1};
    const Ranges visible = among_->any(row, {0, where_.keys});
    const Ranges always = always_ ? always_->any(row, {0, where_.keys}) : Ranges();
    chosen_.push_back(chosen_keys(of_, visible, always, query + offset_, query, where_.head));
  }
  prepared_ = queries;
}

Ranges RandomTopKMask::any(Span queries, Span keys) {
  prepare(queries);
  // Marks, as a row of blocks has too many keys to sort. For one query they must be exact.
  const int64_t grain = queries.size() == 1 ? 1 : 32;
  std::vector<bool> marks(static_cast<size_t>((keys.size() + grain - 1) / grain));
  for (const auto& row : chosen_) {
    const auto first = std::lower_bound(row.begin(), row.end(), keys.begin);
    for (auto key = first; key != row.end() && *key < keys.end; ++key) {
      marks[static_cast<size_t>((*key - keys.begin) / grain)] = true;
    }
  }
  Ranges ranges;
  for (size_t i = 0; i < marks.size(); ++i) {
    const int64_t begin = keys.begin + static_cast<int64_t>(i) * grain;
    if (marks[i]) append(ranges, overlap({begin, begin + grain}, keys));
  }
  return ranges;
}

Ranges RandomTopKMask::every(Span queries, Span keys) {
  return queries.size() == 1 ? any(queries, keys) : Ranges();
}

void RandomTopKMask::words(Span queries, Span keys, uint64_t* words) {
  prepare(queries);
  for (const auto& row : chosen_) {
    uint64_t word = 0;
    const auto first = std::lower_bound(row.begin(), row.end(), keys.begin);
    for (auto key = first; key != row.end() && *key < keys.end; ++key) {
      word |= uint64_t{1} << (*key - keys.begin);
    }
    *words++ = word;
  }
}

Ranges RandomBlocksMask::visible_blocks(BoundMask& mask, Span queries) const {
  const Span all = {0, where_.keys};
  const auto to_blocks = [&](const Ranges& ranges) {
    Ranges blocks;
    for (const Span span : ranges) {
      append(blocks, {span.begin / of_.block, (span.end - 1) / of_.block + 1});
    }
    return blocks;
  };
  // A key that every query sees makes its block visible; the others have to be looked at.
  Ranges visible = to_blocks(mask.every(queries, all));
  const Ranges open = intersection(to_blocks(mask.any(queries, all)),
                                   complement(visible, {0, where_.keys / of_.block + 1}));
  for (const Span span : open) {
    for (int64_t block = span.begin; block < span.end; ++block) {
      const Span keys = overlap({block * of_.block, (block + 1) * of_.block}, all);
      if (has_visible_pair(mask, queries, keys)) visible.push_back({block, block + 1});
    }
  }
  normalise(visible);
  return visible;
}

const Ranges& RandomBlocksMask::chosen(int64_t block) {
  const auto found = chosen_.find(block);
  if (found != chosen_.end()) return found->second;
  const Span queries = overlap({block * of_.block, (block + 1) * of_.block}, {0, where_.queries});
  const Span own = own_blocks(queries, offset_, where_.keys, of_.block);
  const Ranges visible = visible_blocks(*among_, queries);
  const Ranges always = always_ ? visible_blocks(*always_, queries) : Ranges();
  Ranges keys;
  for (const int64_t number : chosen_blocks(of_, visible, always, own, block, where_.head)) {
    append(keys, overlap({number * of_.block, (number + 1) * of_.block}, {0, where_.keys}));
  }
  return chosen_[block] = std::move(keys);
}

Ranges RandomBlocksMask::any(Span queries, Span keys) {
  const Span blocks = blocks_of(queries);
  // Rows are asked for from the top down: what lies above is not asked for again.
  chosen_.erase(chosen_.begin(), chosen_.lower_bound(blocks.begin));
  Ranges ranges;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    ranges = united(ranges, chosen(block));
  }
  return intersection(ranges, {keys});
}

Ranges RandomBlocksMask::every(Span queries, Span keys) {
  const Span blocks = blocks_of(queries);
  Ranges ranges = {keys};
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    ranges = intersection(ranges, chosen(block));
  }
  return ranges;
}

void RandomBlocksMask::words(Span queries, Span keys, uint64_t* words) {
  const Span blocks = blocks_of(queries);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    uint64_t word = 0;
    for (const Span span : intersection(chosen(block), {keys})) word |= shared_bits(span, keys);
    const Span rows = overlap({block * of_.block, (block + 1) * of_.block}, queries);
    words = std::fill_n(words, rows.size(), word);
  }
}

}  // namespace torchlore::detail
