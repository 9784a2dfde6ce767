#include "generic_attention.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "tile_run.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore::attention {
namespace {

using at::Tensor;

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// Neighbouring batch entries and heads that share one pattern.
struct Part {
  int64_t batch, batches, head, heads;
};

/// The slice of a tensor [B, H, …] that belongs to a part; what is broadcast stays whole.
Tensor slice(const Tensor& x, const Part& part) {
  Tensor result = x.size(0) == 1 ? x : x.narrow(0, part.batch, part.batches);
  return x.size(1) == 1 ? result : result.narrow(1, part.head, part.heads);
}

int64_t tiles_in(int64_t rows, int64_t tile) { return (rows + tile - 1) / tile; }

/// Rows [B, H, n, D] cut into tiles [B, H, ceil(n / t), t, D], the last one filled up with zeros.
Tensor cut(const Tensor& x, int64_t tile) {
  const int64_t rows = x.size(2);
  const int64_t count = tiles_in(rows, tile);
  return at::constant_pad_nd(x, {0, 0, 0, count * tile - rows})
      .reshape({x.size(0), x.size(1), count, tile, x.size(3)});
}

/// The first `rows` rows of what `cut` made.
Tensor joined(const Tensor& x, int64_t rows) {
  return x.reshape({x.size(0), x.size(1), x.size(2) * x.size(3), x.size(4)}).narrow(2, 0, rows);
}

/// A bias [B, H, T, S] as tiles [T / t, S / t, B, H, t, t]; an axis that is broadcast stays one tile
/// of size 1.
Tensor cut_bias(const Tensor& bias, int64_t tile) {
  const auto size = [&](int64_t axis) { return bias.size(axis) == 1 ? 1 : tile; };
  const auto count = [&](int64_t axis) { return tiles_in(bias.size(axis), size(axis)); };
  return at::constant_pad_nd(
             bias, {0, count(3) * size(3) - bias.size(3), 0, count(2) * size(2) - bias.size(2)})
      .reshape({bias.size(0), bias.size(1), count(2), size(2), count(3), size(3)})
      .permute({2, 4, 0, 1, 3, 5});
}

/// The inverse of `cut_bias`.
Tensor joined_bias(const Tensor& tiles, const Tensor& bias) {
  return tiles.permute({2, 3, 0, 4, 1, 5})
      .reshape({bias.size(0), bias.size(1), tiles.size(0) * tiles.size(4),
                tiles.size(1) * tiles.size(5)})
      .narrow(2, 0, bias.size(2))
      .narrow(3, 0, bias.size(3));
}

/// The gradient of a tensor of `shape` that was broadcast to that of `gradient`.
Tensor sum_to(const Tensor& gradient, at::IntArrayRef shape) {
  Tensor result = gradient;
  for (size_t i = 0; i < shape.size(); ++i) {
    const auto axis = static_cast<int64_t>(i);
    if (shape[i] == 1 && result.size(axis) != 1) result = result.sum(axis, /*keepdim=*/true);
  }
  return result;
}

/// The tensors of one part in the dtype that sums run in, cut into tiles.
struct Operands {
  Operands(const Inputs& inputs, const Settings& with, const TileLayouts& tiles, const Part& of)
      : part(of),
        settings(with),
        all_heads(inputs.query.size(1)),
        layout(*tiles[static_cast<size_t>(of.batch * all_heads + of.head)]) {
    query = cut(slice(inputs.query, part), layout.tile);
    key = cut(slice(inputs.key, part), layout.tile);
    value = cut(slice(inputs.value, part), layout.tile);
    if (inputs.bias) bias = cut_bias(slice(*inputs.bias, part), layout.tile);
    if (inputs.alibi_slopes) {
      slopes = inputs.alibi_slopes->narrow(0, part.head, part.heads).view({1, part.heads, 1, 1, 1});
    }
  }

  Part part;
  const Settings& settings;
  int64_t all_heads;
  const TileLayout& layout;
  Tensor query, key, value;  ///< [B, H, tiles, t, D or E]
  Tensor bias;               ///< as `cut_bias` makes it
  Tensor slopes;             ///< [1, H, 1, 1, 1]
};

/// A run of tiles of one part: c of them.
class Gathered {
 public:
  Gathered(const Operands& from, const TileRun& run)
      : from_(from), index_(from.layout, run, from.query.device()) {}

  const TileIndex& index() const { return index_; }

  // What no pair of a tile uses is zero in it: 0 · NaN would be seen by the others.
  Tensor queries(const Tensor& x) const { return of(x, index_.query_tile, index_.idle_queries); }
  Tensor keys(const Tensor& x) const { return of(x, index_.key_tile, index_.idle_keys); }

  /// [B, H, c, t, t], -inf for hidden pairs.
  Tensor scores(const Tensor& q, const Tensor& k) const {
    auto s = at::matmul(q, k.transpose(-2, -1)) * from_.settings.scale;
    if (from_.bias.defined()) s = s + bias();
    if (from_.slopes.defined()) s = s - from_.slopes * distances().to(s.scalar_type());
    return s.masked_fill(index_.hidden, kMinusInfinity);
  }

  /// Adds the gradient of the scores [B, H, c, t, t] to that of the bias, shaped as `cut_bias`'s.
  void add_bias_gradient(const Tensor& ds, Tensor& gradient) const {
    const auto& b = from_.bias;
    const auto shape = at::DimVector{b.size(2), b.size(3), ds.size(2), b.size(4), b.size(5)};
    const auto sums = sum_to(ds, shape).permute({2, 0, 1, 3, 4});
    gradient.index_put_(places(), sums, /*accumulate=*/true);
  }

  /// [B, H, c, t, t]: 0 for dropped weights, 1 / (1 - dropout) for the others; undefined without
  /// dropout.
  Tensor dropout() const {
    const auto& s = from_.settings;
    if (s.dropout == 0) return {};
    const auto& p = from_.part;
    const HeadRange range{p.batch, p.batches, p.head, p.heads, from_.all_heads};
    return dropout_factors(index_, range, s.dropout, static_cast<uint64_t>(s.dropout_seed))
        .to(from_.query.options());
  }

 private:
  static Tensor of(const Tensor& x, const Tensor& tiles, const Tensor& idle) {
    return x.index_select(2, tiles).masked_fill(idle, 0);
  }

  /// The tile of the bias along one of its first two axes.
  Tensor along(int64_t axis) const {
    const auto& tiles = axis == 0 ? index_.query_tile : index_.key_tile;
    return from_.bias.size(axis) == 1 && from_.bias.size(axis + 4) == 1 ? at::zeros_like(tiles)
                                                                        : tiles;
  }
  c10::List<std::optional<Tensor>> places() const { return {along(0), along(1)}; }
  Tensor bias() const { return at::index(from_.bias, places()).permute({1, 2, 0, 3, 4}); }
  Tensor distances() const {
    const int64_t tile = from_.layout.tile;
    const auto place = at::arange(tile, index_.query_tile.options());
    const auto q = index_.query_tile.view({-1, 1, 1}) * tile + place.view({1, -1, 1});
    const auto k = index_.key_tile.view({-1, 1, 1}) * tile + place.view({1, 1, -1});
    return (k - q - from_.settings.query_offset).abs();
  }

  const Operands& from_;
  TileIndex index_;
};

Tensor times(const Tensor& x, const Tensor& factors) { return factors.defined() ? x * factors : x; }

/// The largest score of each query of a run, [B, H, rows, t, 1]; 0 for a query without keys. A shift
/// of the exponents only, so it needs no gradient.
Tensor shifts(const Tensor& scores, const TileIndex& index) {
  const at::NoGradGuard no_grad;
  const auto of_tiles = scores.detach().amax(-1, /*keepdim=*/true);
  const auto padded = at::constant_pad_nd(of_tiles, {0, 0, 0, 0, 0, 1}, kMinusInfinity);
  const auto by_row = padded.index_select(2, index.slots.flatten())
                          .unflatten(2, {index.slots.size(0), index.slots.size(1)})
                          .amax(3);
  return by_row.masked_fill(by_row == kMinusInfinity, 0);
}

/// Sums what tiles [B, H, c, …] give into `count` rows of tiles.
Tensor sum_rows(const Tensor& of_tiles, const Tensor& row, int64_t count) {
  auto shape = of_tiles.sizes().vec();
  shape[2] = count;
  return at::zeros(shape, of_tiles.options()).index_add(2, row, of_tiles);
}

struct Forward {
  Tensor output, log_sum_exp;
};

Forward forward_run(const Operands& from, const TileRun& run) {
  if (run.entries == 0) {
    auto shape = from.query.sizes().vec();
    shape[2] = run.rows;
    shape[4] = 1;
    const auto none = at::full(shape, kMinusInfinity, from.query.options());
    shape[4] = from.value.size(4);
    return {at::zeros(shape, from.value.options()), none};
  }
  const Gathered tiles(from, run);
  const auto scores = tiles.scores(tiles.queries(from.query), tiles.keys(from.key));
  const auto shift = shifts(scores, tiles.index());
  const auto weights = (scores - shift.index_select(2, tiles.index().row)).exp();
  const auto sums = sum_rows(weights.sum(-1, /*keepdim=*/true), tiles.index().row, run.rows);
  const auto products = at::matmul(times(weights, tiles.dropout()), tiles.keys(from.value));
  const auto empty = sums == 0;
  const auto safe = sums.masked_fill(empty, 1);
  return {sum_rows(products, tiles.index().row, run.rows) / safe,
          (shift + safe.log()).masked_fill(empty, kMinusInfinity)};
}

Forward forward_part(const Operands& from) {
  std::vector<Tensor> outputs, sums;
  for (const auto& run : runs_of(from.layout, from.part.batches * from.part.heads)) {
    auto result = forward_run(from, run);
    outputs.push_back(std::move(result.output));
    sums.push_back(std::move(result.log_sum_exp));
  }
  const int64_t queries = from.layout.queries;
  return {joined(at::cat(outputs, 2), queries), joined(at::cat(sums, 2), queries)};
}

/// What backward needs of the queries, cut into tiles [B, H, tiles, t, …].
struct Upstream {
  Tensor grad_output;
  Tensor log_sum_exp;  ///< 0 where a query sees no key
  Tensor delta;        ///< what every weight's gradient is counted from
};

/// The gradients of one part, as tiles.
class BackwardPart {
 public:
  BackwardPart(const Operands& from, const Upstream& upstream, bool bias_gradient)
      : from_(from), upstream_(upstream) {
    key_ = at::zeros_like(from.key, at::MemoryFormat::Contiguous);
    value_ = at::zeros_like(from.value, at::MemoryFormat::Contiguous);
    if (bias_gradient) bias_ = at::zeros_like(from.bias, at::MemoryFormat::Contiguous);
    for (const auto& run : runs_of(from.layout, from.part.batches * from.part.heads)) add(run);
  }

  Tensor query() const { return joined(at::cat(query_, 2), from_.layout.queries); }
  Tensor key() const { return joined(key_, from_.layout.keys); }
  Tensor value() const { return joined(value_, from_.layout.keys); }
  Tensor bias() const { return bias_; }

 private:
  void add(const TileRun& run) {
    if (run.entries == 0) {
      query_.push_back(at::zeros_like(from_.query.narrow(2, run.first_row, run.rows)));
      return;
    }
    const Gathered tiles(from_, run);
    const auto& index = tiles.index();
    const auto q = tiles.queries(from_.query);
    const auto k = tiles.keys(from_.key);
    const auto grad = tiles.queries(upstream_.grad_output);
    const auto weights = (tiles.scores(q, k) - tiles.queries(upstream_.log_sum_exp)).exp();
    const auto kept = tiles.dropout();
    value_.index_add_(2, index.key_tile, at::matmul(times(weights, kept).transpose(-2, -1), grad));
    const auto d_weights = times(at::matmul(grad, tiles.keys(from_.value).transpose(-2, -1)), kept);
    const auto d_scores =
        (weights * (d_weights - tiles.queries(upstream_.delta))).masked_fill(index.hidden, 0);
    if (bias_.defined()) tiles.add_bias_gradient(d_scores, bias_);
    const auto scaled = d_scores * from_.settings.scale;
    query_.push_back(sum_rows(at::matmul(scaled, k), index.row, run.rows));
    key_.index_add_(2, index.key_tile, at::matmul(scaled.transpose(-2, -1), q));
  }

  const Operands& from_;
  const Upstream& upstream_;
  std::vector<Tensor> query_;
  Tensor key_, value_, bias_;
};

/// Parts as large as the patterns and the memory allow: all, or one head at a time.
std::vector<Part> parts_of(const TileLayouts& tiles, int64_t batch, int64_t heads) {
  const bool same = std::all_of(tiles.begin(), tiles.end(),
                                [&](const TileLayout* each) { return each == tiles.front(); });
  if (same && fits(*tiles.front(), batch * heads)) return {{0, batch, 0, heads}};
  std::vector<Part> parts;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) parts.push_back({b, 1, h, 1});
  }
  return parts;
}

/// Puts the results of all parts together again, [B, H, …].
Tensor assembled(const std::vector<Tensor>& parts, int64_t batch) {
  if (parts.size() == 1) return parts.front();
  const size_t heads = parts.size() / static_cast<size_t>(batch);
  std::vector<Tensor> entries;
  for (size_t b = 0; b < static_cast<size_t>(batch); ++b) {
    const auto first = parts.begin() + static_cast<std::ptrdiff_t>(b * heads);
    entries.push_back(
        at::cat(std::vector<Tensor>(first, first + static_cast<std::ptrdiff_t>(heads)), 1));
  }
  return at::cat(entries, 0);
}

/// Keeps autocast from casting the parts, and modes from seeing them: they are one op's.
struct Undisturbed {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  OpModeGuard no_modes{OpModeState()};
};

at::ScalarType sum_dtype(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// The inputs in the dtype that sums run in, key and value with a head for each of query's.
Inputs widened(const Inputs& inputs) {
  const auto dtype = sum_dtype(inputs.query);
  const int64_t group = inputs.query.size(1) / inputs.key.size(1);
  const auto shared = [&](const Tensor& x) {
    const auto wide = x.to(dtype);
    return group == 1 ? wide : wide.repeat_interleave(group, 1);
  };
  Inputs result{inputs.query.to(dtype), shared(inputs.key), shared(inputs.value), std::nullopt,
                std::nullopt};
  if (inputs.bias) result.bias = inputs.bias->to(dtype);
  if (inputs.alibi_slopes) result.alibi_slopes = inputs.alibi_slopes->to(at::kFloat).to(dtype);
  return result;
}

/// The gradient of key or value, whose heads are shared by several of query's.
Tensor summed_over_group(const Tensor& gradient, const Tensor& of) {
  const int64_t group = gradient.size(1) / of.size(1);
  const auto sum = group == 1 ? gradient : gradient.unflatten(1, {of.size(1), group}).sum(2);
  return sum.to(of.scalar_type());
}

}  // namespace

std::tuple<Tensor, Tensor> generic_forward(const Inputs& inputs, const Settings& settings,
                                           const TileLayouts& tiles) {
  const Undisturbed undisturbed;
  const auto wide = widened(inputs);
  const int64_t batch = inputs.query.size(0);
  std::vector<Tensor> outputs, sums;
  for (const auto& part : parts_of(tiles, batch, inputs.query.size(1))) {
    auto result = forward_part(Operands(wide, settings, tiles, part));
    outputs.push_back(std::move(result.output));
    sums.push_back(std::move(result.log_sum_exp));
  }
  return {assembled(outputs, batch).to(inputs.query.scalar_type()),
          assembled(sums, batch).squeeze(-1)};
}

Gradients generic_backward(const Tensor& grad_output, const Tensor& grad_log_sum_exp,
                           const Tensor& output, const Tensor& log_sum_exp, const Inputs& inputs,
                           const Settings& settings, const TileLayouts& tiles, bool bias_gradient) {
  const Undisturbed undisturbed;
  const auto wide = widened(inputs);
  const auto dtype = sum_dtype(inputs.query);
  const auto grad = grad_output.to(dtype);
  auto delta = (grad * output.to(dtype)).sum(-1, /*keepdim=*/true);
  if (grad_log_sum_exp.defined()) delta = delta - grad_log_sum_exp.unsqueeze(-1);
  const auto sums = log_sum_exp.masked_fill(log_sum_exp == kMinusInfinity, 0).unsqueeze(-1);

  const int64_t batch = inputs.query.size(0);
  std::vector<Tensor> query, key, value;
  Tensor bias;
  if (bias_gradient) bias = at::zeros_like(*wide.bias);
  for (const auto& part : parts_of(tiles, batch, inputs.query.size(1))) {
    const Operands operands(wide, settings, tiles, part);
    const int64_t tile = operands.layout.tile;
    const BackwardPart result(
        operands,
        {cut(slice(grad, part), tile), cut(slice(sums, part), tile), cut(slice(delta, part), tile)},
        bias_gradient);
    query.push_back(result.query());
    key.push_back(result.key());
    value.push_back(result.value());
    if (bias_gradient) {
      auto place = slice(bias, part);
      place.add_(joined_bias(result.bias(), place));
    }
  }
  Gradients gradients{assembled(query, batch).to(inputs.query.scalar_type()),
                      summed_over_group(assembled(key, batch), inputs.key),
                      summed_over_group(assembled(value, batch), inputs.value),
                      {}};
  if (bias_gradient) gradients.bias = bias.to(inputs.bias->scalar_type());
  return gradients;
}

}  // namespace torchlore::attention
