#include "flash_attention.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "generic_attention.hpp"
#include "merged.hpp"

namespace torchlore::attention {
namespace {

using at::Tensor;
using Output = std::tuple<Tensor, Tensor>;

/// The partial tiles of a pattern. Without the transpose, which gathered tiles do not need.
TileLayout partial_tiles(const TileLayout& all) {
  TileLayout part;
  part.queries = all.queries;
  part.keys = all.keys;
  part.tile = all.tile;
  part.bits = all.bits;
  part.row_start.push_back(0);
  for (size_t row = 0; row + 1 < all.row_start.size(); ++row) {
    for (auto e = static_cast<size_t>(all.row_start[row]);
         e < static_cast<size_t>(all.row_start[row + 1]); ++e) {
      if (all.kind[e] == TileLayout::kFull) continue;
      part.column.push_back(all.column[e]);
      part.kind.push_back(all.kind[e]);
    }
    part.row_start.push_back(static_cast<int32_t>(part.column.size()));
  }
  return part;
}

/// Those of all batch entries and heads, each different one once.
class PartialTiles {
 public:
  explicit PartialTiles(const TileLayouts& all) {
    for (const auto* layout : all) {
      const auto [found, added] = made_.try_emplace(layout);
      if (added) found->second = std::make_unique<TileLayout>(partial_tiles(*layout));
      tiles_.push_back(found->second.get());
    }
  }
  const TileLayouts& tiles() const { return tiles_; }

 private:
  std::map<const TileLayout*, std::unique_ptr<TileLayout>> made_;
  TileLayouts tiles_;
};

/// The full tiles: each query tile that has any is a sequence, with the keys of all of them.
///
/// Where all heads share one pattern a row holds all its heads; else each head's rows stand for
/// themselves.
class FullTiles {
 public:
  FullTiles(const Inputs& in, const TileLayouts& tiles)
      : batch_(in.query.size(0)), heads_(in.query.size(1)), key_heads_(in.key.size(1)) {
    for (const auto* each : tiles) shared_ = shared_ && each == tiles.front();
    const int64_t units = shared_ ? batch_ : batch_ * heads_;
    const int64_t group = heads_ / key_heads_;
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t key_unit = shared_ ? unit : unit / heads_ * key_heads_ + unit % heads_ / group;
      add(*tiles[static_cast<size_t>(shared_ ? unit * heads_ : unit)], unit, key_unit);
    }
    const auto on_device = [&](const auto& values, at::ScalarType dtype) {
      return at::tensor(values, dtype).to(in.query.device());
    };
    queries_ = on_device(query_rows_, at::kLong);
    keys_ = on_device(key_rows_, at::kLong);
    packed_.query_start = on_device(query_start_, at::kInt);
    packed_.key_start = on_device(key_start_, at::kInt);
  }

  bool empty() const { return query_rows_.empty(); }
  const Packed& packed() const { return packed_; }

  /// Rows of [B, H, T, d], [rows, heads, d].
  Tensor pack_queries(const Tensor& x) const { return flat(x).index_select(0, queries_); }
  Tensor pack_keys(const Tensor& x) const { return flat(x).index_select(0, keys_); }
  /// Numbers of queries [B, H, T], [heads, rows].
  Tensor pack_sums(const Tensor& x) const {
    return pack_queries(x.unsqueeze(-1)).squeeze(-1).t().contiguous();
  }

  /// The inverse of `pack_queries`, float32; the other rows hold `fill`.
  Tensor unpack_queries(const Tensor& rows, int64_t count, double fill = 0) const {
    auto all = at::full({(shared_ ? batch_ : batch_ * heads_) * count, rows.size(1), rows.size(2)},
                        fill, rows.options().dtype(at::kFloat));
    return whole(all.index_copy_(0, queries_, rows.to(at::kFloat)), heads_, count);
  }
  Tensor unpack_sums(const Tensor& sums, int64_t count) const {
    return unpack_queries(sums.t().unsqueeze(-1), count, -std::numeric_limits<double>::infinity())
        .squeeze(-1);
  }
  /// The sums of the rows that each key has, float32.
  Tensor sum_keys(const Tensor& rows, int64_t count) const {
    auto all =
        at::zeros({(shared_ ? batch_ : batch_ * key_heads_) * count, rows.size(1), rows.size(2)},
                  rows.options().dtype(at::kFloat));
    return whole(all.index_add_(0, keys_, rows.to(at::kFloat)), key_heads_, count);
  }

 private:
  void add(const TileLayout& layout, int64_t unit, int64_t key_unit) {
    const int64_t tile = layout.tile;
    for (size_t row = 0; row + 1 < layout.row_start.size(); ++row) {
      const auto before = static_cast<int64_t>(key_rows_.size());
      for (auto e = static_cast<size_t>(layout.row_start[row]);
           e < static_cast<size_t>(layout.row_start[row + 1]); ++e) {
        if (layout.kind[e] != TileLayout::kFull) continue;
        add_rows(key_rows_, key_unit, layout.column[e], tile, layout.keys);
      }
      const int64_t keys = static_cast<int64_t>(key_rows_.size()) - before;
      if (keys == 0) continue;
      const int64_t queries =
          add_rows(query_rows_, unit, static_cast<int64_t>(row), tile, layout.queries);
      query_start_.push_back(query_start_.back() + queries);
      key_start_.push_back(key_start_.back() + keys);
      packed_.most_queries = std::max(packed_.most_queries, queries);
      packed_.most_keys = std::max(packed_.most_keys, keys);
    }
  }

  /// The rows of a tile among those of all units; returns how many.
  static int64_t add_rows(std::vector<int64_t>& rows, int64_t unit, int64_t index, int64_t tile,
                          int64_t length) {
    const int64_t first = index * tile, last = std::min(first + tile, length);
    for (int64_t i = first; i < last; ++i) rows.push_back(unit * length + i);
    return last - first;
  }

  Tensor flat(const Tensor& x) const {
    return shared_ ? x.transpose(1, 2).flatten(0, 1) : x.flatten(0, 2).unsqueeze(1);
  }
  Tensor whole(const Tensor& rows, int64_t heads, int64_t count) const {
    if (shared_) return rows.unflatten(0, {batch_, count}).transpose(1, 2);
    return rows.view({batch_, heads, count, rows.size(2)});
  }

  int64_t batch_, heads_, key_heads_;
  bool shared_ = true;
  std::vector<int64_t> query_rows_, key_rows_, query_start_{0}, key_start_{0};
  Tensor queries_, keys_;
  Packed packed_;
};

Output run_cuda_flash(const Tensor& query, const Tensor& key, const Tensor& value,
                      const Packed& packed, double scale) {
  const auto result = at::_flash_attention_forward(
      query, key, value, packed.query_start, packed.key_start, packed.most_queries,
      packed.most_keys, /*dropout_p=*/0, /*is_causal=*/false, /*return_debug_mask=*/false, scale);
  return {std::get<0>(result), std::get<1>(result)};
}

std::tuple<Tensor, Tensor, Tensor> run_cuda_flash_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& output, const Tensor& log_sum_exp, const Packed& packed, double scale) {
  const auto no_random =
      at::zeros({2}, query.options().dtype(at::kLong));  // without dropout unused
  return at::_flash_attention_backward(grad_output, query, key, value, output, log_sum_exp,
                                       packed.query_start, packed.key_start, packed.most_queries,
                                       packed.most_keys, /*dropout_p=*/0, /*is_causal=*/false,
                                       no_random, no_random, scale);
}

/// Whether two results differ by no more than 16 bits explain.
bool agree(const Tensor& a, const Tensor& b) {
  return at::allclose(a.to(at::kFloat), b.to(at::kFloat), 0.05, 0.05);
}

/// Compares the flash kernels with gathered tiles on a small call: what they expect has changed between
/// versions of LibTorch, and old devices lack them.
bool flash_proves_right(c10::Device device) {
  const auto options = at::TensorOptions(device).dtype(at::kBFloat16);
  const auto x = at::arange(3 * 2 * 192 * 32, options.dtype(at::kFloat)).sin().to(at::kBFloat16);
  const auto each = x.view({3, 1, 2, 192, 32}).unbind(0);
  const Inputs inputs{each[0], each[1], each[2], std::nullopt, std::nullopt};
  const auto layout = BlockLayout::build(mask::causal(), 192, 192);
  const Settings settings{c10::make_intrusive<Pattern>(layout), 0.2};
  const auto tiles = tiles_of_call(inputs, settings);
  try {
    const auto [output, sums] = flash_forward(inputs, settings, tiles);
    const auto [golden, golden_sums] = generic_forward(inputs, settings, tiles);
    const auto a = flash_backward(each[1], output, sums, inputs, settings, tiles);
    const auto b = generic_backward(each[1], {}, golden, golden_sums, inputs, settings, tiles,
                                    /*bias_gradient=*/false);
    return agree(output, golden) && agree(sums, golden_sums) && agree(a.query, b.query) &&
           agree(a.key, b.key) && agree(a.value, b.value);
  } catch (const c10::Error&) {
    return false;
  }
}

}  // namespace

const PackedKernel& cuda_flash() {
  static const PackedKernel kernel{&run_cuda_flash, &run_cuda_flash_backward};
  return kernel;
}

bool runs_on_flash(const Inputs& in, const Settings& settings) {
  const auto& q = in.query;
  const bool low = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  const bool dims = q.size(3) == in.value.size(3) && q.size(3) % 8 == 0 && q.size(3) <= 256;
  if (!q.is_cuda() || !low || !dims || in.bias || in.alibi_slopes || settings.dropout > 0) {
    return false;
  }
  static const bool right = flash_proves_right(q.device());
  return right;
}

Output flash_forward(const Inputs& in, const Settings& settings, const TileLayouts& tiles,
                     const PackedKernel& kernel) {
  const FullTiles full(in, tiles);
  if (full.empty()) return generic_forward(in, settings, tiles);
  const auto [rows, row_sums] =
      kernel.forward(full.pack_queries(in.query), full.pack_keys(in.key), full.pack_keys(in.value),
                     full.packed(), settings.scale);
  const int64_t queries = in.query.size(2);
  const PartialTiles partial(tiles);
  const auto [output, sums] =
      merged({full.unpack_queries(rows, queries), full.unpack_sums(row_sums, queries)},
             generic_forward(in, settings, partial.tiles()));
  return {output.to(in.query.scalar_type()), sums};
}

Gradients flash_backward(const Tensor& grad_output, const Tensor& output, const Tensor& log_sum_exp,
                         const Inputs& in, const Settings& settings, const TileLayouts& tiles,
                         const PackedKernel& kernel) {
  const FullTiles full(in, tiles);
  const PartialTiles partial(tiles);
  auto rest = generic_backward(grad_output, {}, output, log_sum_exp, in, settings, partial.tiles(),
                               /*bias_gradient=*/false);
  if (full.empty()) return rest;
  const auto [query, key, value] =
      kernel.backward(full.pack_queries(grad_output), full.pack_queries(in.query),
                      full.pack_keys(in.key), full.pack_keys(in.value), full.pack_queries(output),
                      full.pack_sums(log_sum_exp), full.packed(), settings.scale);
  const auto sum = [](const Tensor& a, const Tensor& b) { return (a + b).to(b.scalar_type()); };
  return {sum(full.unpack_queries(query, in.query.size(2)), rest.query),
          sum(full.sum_keys(key, in.key.size(2)), rest.key),
          sum(full.sum_keys(value, in.value.size(2)), rest.value),
          {}};
}

}  // namespace torchlore::attention
