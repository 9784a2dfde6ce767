#include "lowered_attention.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

#include "cpu_attention.hpp"
#include "memory_order.hpp"
#include "merged.hpp"
#include "shifted_attention.hpp"

namespace torchlore::attention {
namespace {

using at::Tensor;
using Output = std::tuple<Tensor, Tensor>;

/// What a backward starts from.
struct Saved {
  const Tensor& grad_output;
  const Tensor& grad_log_sum_exp;  ///< may be undefined
  const Tensor& output;
  const Tensor& log_sum_exp;
};

/// Which rows of a tensor [B, H, n, …] a part takes.
class Order {
 public:
  explicit Order(const std::vector<int64_t>& rows) {
    if (!rows.empty()) rows_ = at::tensor(rows, at::kLong);
  }

  /// The rows in their order.
  Tensor take(const Tensor& x) const {
    return x.defined() && rows_.defined() ? x.index_select(2, rows_) : x;
  }
  /// The other way round, to `count` rows; those that were not taken are 0.
  Tensor put_back(const Tensor& rows, int64_t count) const {
    if (!rows_.defined()) return rows;
    auto shape = rows.sizes().vec();
    shape[2] = count;
    return at::zeros(shape, rows.options()).index_copy_(2, rows_, rows);
  }

 private:
  Tensor rows_;
};

Output forward_of(const ShiftedPart& part, const Inputs& in, const Settings& settings) {
  const auto [out, sums] = shifted_forward(in.query, in.key, in.value, part.shifts, settings.scale);
  return {out, sums};
}

Gradients backward_of(const ShiftedPart& part, const Saved& saved, const Inputs& in,
                      const Settings& settings) {
  auto [query, key, value] = shifted_backward(
      in.query, in.key, in.value, part.shifts, settings.scale,
      {saved.output, saved.log_sum_exp.contiguous(), saved.grad_output, saved.grad_log_sum_exp});
  return {query, key, value, {}};
}

/// A tiled part's rows of a call.
struct Rows {
  Rows(const TiledPart& part, const Inputs& in)
      : queries(part.queries),
        keys(part.keys),
        inputs{queries.take(in.query), keys.take(in.key), keys.take(in.value), {}, {}},
        tiles(static_cast<size_t>(in.query.size(0) * in.query.size(1)), part.tiles.get()) {}

  Order queries;
  Order keys;
  Inputs inputs;
  TileLayouts tiles;
};

Output forward_of(const TiledPart& part, const Inputs& in, const Settings& settings) {
  const Rows rows(part, in);
  const auto [out, sums] = cpu_forward(rows.inputs, settings, rows.tiles);
  const int64_t count = in.query.size(2);
  return {rows.queries.put_back(out, count), rows.queries.put_back(sums, count)};
}

Gradients backward_of(const TiledPart& part, const Saved& saved, const Inputs& in,
                      const Settings& settings) {
  const Rows rows(part, in);
  const auto take = [&](const Tensor& x) { return rows.queries.take(x); };
  const auto found =
      cpu_backward(take(saved.grad_output), take(saved.grad_log_sum_exp), take(saved.output),
                   take(saved.log_sum_exp), rows.inputs, settings, rows.tiles);
  return {rows.queries.put_back(found.query, in.query.size(2)),
          rows.keys.put_back(found.key, in.key.size(2)),
          rows.keys.put_back(found.value, in.key.size(2)),
          {}};
}

/// In memory ordered as `order` is.
Tensor ordered_as(const Tensor& order, const Tensor& x) {
  auto result = empty_as(order, x.size(3));
  return result.strides() == x.strides() ? x : result.copy_(x);
}

}  // namespace

Output lowered_forward(const Plan& plan, const Inputs& inputs, const Settings& settings) {
  Output result;
  for (const auto& any : plan.parts) {
    auto part = std::visit([&](const auto& of) { return forward_of(of, inputs, settings); }, any);
    result = std::get<0>(result).defined() ? merged(result, part) : std::move(part);
  }
  std::get<0>(result) = ordered_as(inputs.query, std::get<0>(result));
  return result;
}

Gradients lowered_backward(const Plan& plan, const Tensor& grad_output,
                           const Tensor& grad_log_sum_exp, const Tensor& output,
                           const Tensor& log_sum_exp, const Inputs& inputs,
                           const Settings& settings) {
  const Saved saved{grad_output, grad_log_sum_exp, output, log_sum_exp};
  Gradients result;
  for (const auto& any : plan.parts) {
    auto part =
        std::visit([&](const auto& of) { return backward_of(of, saved, inputs, settings); }, any);
    if (!result.query.defined()) {
      result = std::move(part);
      continue;
    }
    result.query.add_(part.query);
    result.key.add_(part.key);
    result.value.add_(part.value);
  }
  return {ordered_as(inputs.query, result.query),
          ordered_as(inputs.key, result.key),
          ordered_as(inputs.value, result.value),
          {}};
}

}  // namespace torchlore::attention
