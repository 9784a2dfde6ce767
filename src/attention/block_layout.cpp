#include "torchlore/attention/block_layout.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <bit>
#include <limits>

#include "layout_patterns.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace detail {
namespace {

void check_length(const char* what, int64_t length) {
  TORCH_CHECK_VALUE(length >= 0 && length <= std::numeric_limits<int32_t>::max(), "the number of ",
                    what, " must lie in [0, 2^31), but is ", length);
}

void check_options(const BlockLayoutOptions& options) {
  TORCH_CHECK_VALUE(
      options.block_size == 32 || options.block_size == 64 || options.block_size == 128,
      "block_size must be 32, 64 or 128, but is ", options.block_size);
  check_count("batch", options.batch);
  check_count("heads", options.heads);
}

bool same_tiles(const TileLayout& a, const TileLayout& b) {
  return a.row_start == b.row_start && a.column == b.column && a.kind == b.kind && a.bits == b.bits;
}

/// Moves the different ones of `all` to the patterns, and notes which is whose.
void keep_different(std::vector<TileLayout> all, LayoutPatterns& patterns) {
  for (auto& layout : all) {
    const auto same =
        std::find_if(patterns.patterns.begin(), patterns.patterns.end(),
                     [&](const TileLayout& kept) { return same_tiles(kept, layout); });
    patterns.index.push_back(static_cast<int32_t>(same - patterns.patterns.begin()));
    if (same == patterns.patterns.end()) patterns.patterns.push_back(std::move(layout));
  }
}

std::shared_ptr<const LayoutPatterns> build_patterns(const MaskNode& node,
                                                     const LayoutCache::Key& key) {
  check_fits(node, key.queries, key.keys, key.batch, key.heads);
  auto patterns = std::make_shared<LayoutPatterns>();
  patterns->queries = key.queries;
  patterns->keys = key.keys;
  patterns->block_size = key.block_size;
  patterns->batch = key.batch;
  patterns->heads = key.heads;
  patterns->own_batch = depends_on_batch(node) ? key.batch : 1;
  patterns->own_heads = depends_on_head(node) ? key.heads : 1;

  std::vector<TileLayout> all(static_cast<size_t>(patterns->own_batch * patterns->own_heads));
  const auto build = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Where where{key.queries, key.keys, i / patterns->own_heads, i % patterns->own_heads};
      const auto mask = bind_mask(node, where);
      all[static_cast<size_t>(i)] =
          build_tiles(*mask, key.queries, key.keys, std::min<int64_t>(key.block_size, 64));
    }
  };
  const auto count = static_cast<int64_t>(all.size());
  if (has_predicate(node)) {
    build(0, count);  // a user's function, on the user's thread
  } else {
    at::parallel_for(0, count, 1, build);
  }
  keep_different(std::move(all), *patterns);
  return patterns;
}

}  // namespace
}  // namespace detail

namespace {

/// The mean of f(pattern) over all batch entries and heads.
template <typename F>
double mean_of(const detail::LayoutPatterns& patterns, const F& f) {
  std::vector<double> values;
  for (const auto& pattern : patterns.patterns) values.push_back(f(pattern));
  double sum = 0;
  for (const int32_t index : patterns.index) sum += values[static_cast<size_t>(index)];
  return sum / static_cast<double>(patterns.index.size());
}

/// `part` of all pairs; 0 where there are none.
double share_of(int64_t part, int64_t rows, int64_t columns) {
  return part == 0
             ? 0
             : static_cast<double>(part) / static_cast<double>(rows) / static_cast<double>(columns);
}

/// How many blocks of `block` queries and keys hold a tile.
int64_t touched_blocks(const TileLayout& layout, int64_t block) {
  const int64_t side = block / layout.tile;
  if (side == 1) return static_cast<int64_t>(layout.column.size());
  const auto columns = static_cast<size_t>(detail::tiles_of(layout.keys, block));
  std::vector<int64_t> last_row(columns, -1);  // of blocks, in which the column was met
  int64_t touched = 0;
  detail::for_each_tile(layout, [&](int64_t row, int64_t column, int32_t) {
    int64_t& last = last_row[static_cast<size_t>(column / side)];
    touched += last != row / side;
    last = row / side;
  });
  return touched;
}

int64_t area(const TileLayout& layout, int64_t row, int64_t column) {
  return detail::span_of_tile(row, layout.tile, layout.queries).size() *
         detail::span_of_tile(column, layout.tile, layout.keys).size();
}

int64_t visible_pairs(const TileBits& bits) {
  int64_t count = 0;
  for (const uint64_t word : bits.by_query) count += std::popcount(word);
  return count;
}

void fill_dense(const TileLayout& layout, bool* out) {
  detail::for_each_tile(layout, [&](int64_t row, int64_t column, int32_t kind) {
    const auto queries = detail::span_of_tile(row, layout.tile, layout.queries);
    const auto keys = detail::span_of_tile(column, layout.tile, layout.keys);
    for (int64_t i = 0; i < queries.size(); ++i) {
      const uint64_t word =
          kind == TileLayout::kFull
              ? ~uint64_t{0}
              : layout.bits[static_cast<size_t>(kind)].by_query[static_cast<size_t>(i)];
      bool* to = out + (queries.begin + i) * layout.keys + keys.begin;
      for (int64_t j = 0; j < keys.size(); ++j) to[j] = (word >> j & 1) != 0;
    }
  });
}

}  // namespace

BlockLayout::BlockLayout(MaskSpec spec, std::shared_ptr<const detail::LayoutPatterns> patterns)
    : spec_(std::move(spec)), patterns_(std::move(patterns)) {}

BlockLayout BlockLayout::build(const MaskSpec& spec, int64_t queries, int64_t keys,
                               const BlockLayoutOptions& options) {
  detail::check_length("queries", queries);
  detail::check_length("keys", keys);
  detail::check_options(options);
  const detail::LayoutCache::Key key{queries, keys, options.block_size, options.batch,
                                     options.heads};
  auto patterns = spec.node().layouts.find(key);
  if (!patterns) {
    patterns = detail::build_patterns(spec.node(), key);
    spec.node().layouts.keep(key, patterns);
  }
  return {spec, std::move(patterns)};
}

int64_t BlockLayout::queries() const { return patterns_->queries; }
int64_t BlockLayout::keys() const { return patterns_->keys; }
int64_t BlockLayout::block_size() const { return patterns_->block_size; }
int64_t BlockLayout::batch() const { return patterns_->batch; }
int64_t BlockLayout::heads() const { return patterns_->heads; }
const MaskSpec& BlockLayout::spec() const { return spec_; }

const TileLayout& BlockLayout::pattern(int64_t batch_entry, int64_t head) const {
  const auto check = [](const char* what, int64_t index, int64_t count) {
    TORCH_CHECK_VALUE(index >= 0 && (count == 1 || index < count), "there is no ", what, " ", index,
                      " in a layout for ", count);
  };
  check("batch entry", batch_entry, batch());
  check("head", head, heads());
  return patterns_->at(batch_entry, head);
}

double BlockLayout::density() const {
  const int64_t block = block_size();
  return mean_of(*patterns_, [&](const TileLayout& layout) {
    return share_of(touched_blocks(layout, block), detail::tiles_of(queries(), block),
                    detail::tiles_of(keys(), block));
  });
}

double BlockLayout::executed_area() const {
  return mean_of(*patterns_, [&](const TileLayout& layout) {
    int64_t pairs = 0;
    detail::for_each_tile(
        layout, [&](int64_t row, int64_t column, int32_t) { pairs += area(layout, row, column); });
    return share_of(pairs, queries(), keys());
  });
}

double BlockLayout::visible_share() const {
  return mean_of(*patterns_, [&](const TileLayout& layout) {
    std::vector<int64_t> counts;
    for (const auto& bits : layout.bits) counts.push_back(visible_pairs(bits));
    int64_t pairs = 0;
    detail::for_each_tile(layout, [&](int64_t row, int64_t column, int32_t kind) {
      const bool full = kind == TileLayout::kFull;
      pairs += full ? area(layout, row, column) : counts[static_cast<size_t>(kind)];
    });
    return share_of(pairs, queries(), keys());
  });
}

at::Tensor BlockLayout::to_dense() const {
  auto dense = at::zeros({batch(), heads(), queries(), keys()}, at::kBool);
  bool* data = dense.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < batch() * heads(); ++i) {
    fill_dense(patterns_->at(i / heads(), i % heads()), data + i * queries() * keys());
  }
  return dense;
}

}  // namespace torchlore
