#include "lowered_attention.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

#include "../core/kernels/element_of.hpp"
#include "../privacy/buffer_pool.hpp"
#include "kernels/attention_kernels.hpp"

namespace torchlore::attention {
namespace {

using at::Tensor;
using kernels::AttentionProblem;
using kernels::Rows;

/// Memory that calls keep between them for the next one.
constexpr int64_t kKeptBytes = int64_t{64} << 20;

detail::BufferPool& scratch() {
  static auto* const pool = new detail::BufferPool(kKeptBytes);  // tensors may outlive statics
  return *pool;
}

Rows rows_of(const Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

/// Which rows of a tensor [B, H, n, D] a part takes.
class Order {
 public:
  explicit Order(const std::vector<int64_t>& rows) {
    if (!rows.empty()) rows_ = at::tensor(rows, at::kLong);
  }

  /// The rows in their order, each in one piece.
  Tensor take(const Tensor& x) const {
    if (rows_.defined()) return x.index_select(2, rows_);
    return x.size(-1) == 1 || x.stride(-1) == 1 ? x : x.contiguous();
  }
  /// The other way round; rows that were not taken are 0. For numbers per row, [B, H, n], too.
  Tensor put_back(const Tensor& rows, int64_t count) const {
    if (!rows_.defined()) return rows;
    auto shape = rows.sizes().vec();
    shape[2] = count;
    return at::zeros(shape, rows.options()).index_copy_(2, rows_, rows);
  }

 private:
  Tensor rows_;
};

/// The block kernels' problem for one part, and what its pointers point into.
class TiledProblem {
 public:
  TiledProblem(const TiledPart& part, const Tensor& q, const Tensor& k, const Tensor& v,
               double scale)
      : queries(part.queries),
        keys(part.keys),
        q_(queries.take(q)),
        k_(keys.take(k)),
        v_(keys.take(v)) {
    layouts_.assign(static_cast<size_t>(q.size(0) * q.size(1)), part.tiles.get());
    problem = {.element = kernels::element_of(q.scalar_type()),
               .batch = q_.size(0),
               .heads = q_.size(1),
               .key_heads = k_.size(1),
               .queries = q_.size(2),
               .keys = k_.size(2),
               .head_dim = q_.size(3),
               .value_dim = v_.size(3),
               .q = rows_of(q_),
               .k = rows_of(k_),
               .v = rows_of(v_),
               .layouts = layouts_.data(),
               .scale = scale};
  }
  TiledProblem(const TiledProblem&) = delete;
  TiledProblem& operator=(const TiledProblem&) = delete;

  Tensor empty_like_q() const { return at::empty(q_.sizes(), q_.options()); }
  Tensor empty_like_k() const { return at::empty(k_.sizes(), k_.options()); }
  Tensor empty_like_v() const { return at::empty(v_.sizes(), v_.options()); }

  Order queries;
  Order keys;
  AttentionProblem problem;

 private:
  Tensor q_, k_, v_;
  std::vector<const TileLayout*> layouts_;
};

AttentionOutput forward_of(const ShiftedPart& part, const Tensor& q, const Tensor& k,
                           const Tensor& v, double scale) {
  return shifted_forward(q, k, v, part.shifts, scale);
}

AttentionOutput forward_of(const TiledPart& part, const Tensor& q, const Tensor& k, const Tensor& v,
                           double scale) {
  const TiledProblem tiled(part, q, k, v, scale);
  const bool wide = q.scalar_type() == at::kDouble;
  const auto out = at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
  const auto sums = at::empty({q.size(0), q.size(1), q.size(2)}, wide ? at::kDouble : at::kFloat);
  kernels::attention_forward(tiled.problem, rows_of(out), sums.mutable_data_ptr(), scratch());
  return {tiled.queries.put_back(out, q.size(2)), tiled.queries.put_back(sums, q.size(2))};
}

AttentionInputGradients backward_of(const ShiftedPart& part, const Tensor& q, const Tensor& k,
                                    const Tensor& v, double scale, const AttentionSaved& saved) {
  return shifted_backward(q, k, v, part.shifts, scale, saved);
}

AttentionInputGradients backward_of(const TiledPart& part, const Tensor& q, const Tensor& k,
                                    const Tensor& v, double scale, const AttentionSaved& saved) {
  const TiledProblem tiled(part, q, k, v, scale);
  const auto out = tiled.queries.take(saved.out), grad_out = tiled.queries.take(saved.grad_out);
  const auto sums = tiled.queries.take(saved.log_sum_exp).contiguous();
  Tensor grad_sums;
  if (saved.grad_log_sum_exp.defined()) {
    grad_sums = tiled.queries.take(saved.grad_log_sum_exp).contiguous();
  }
  const auto grad_q = tiled.empty_like_q(), grad_k = tiled.empty_like_k(),
             grad_v = tiled.empty_like_v();
  kernels::attention_backward(
      tiled.problem,
      {.out = rows_of(out),
       .log_sum_exp = sums.const_data_ptr(),
       .grad_out = rows_of(grad_out),
       .grad_log_sum_exp = grad_sums.defined() ? grad_sums.const_data_ptr() : nullptr,
       .grad_q = rows_of(grad_q),
       .grad_k = rows_of(grad_k),
       .grad_v = rows_of(grad_v)},
      scratch());
  return {tiled.queries.put_back(grad_q, q.size(2)), tiled.keys.put_back(grad_k, k.size(2)),
          tiled.keys.put_back(grad_v, k.size(2))};
}

/// Softmax over two disjoint sets of keys, each with its own output and log-sum-exp.
AttentionOutput merged(const AttentionOutput& a, const AttentionOutput& b) {
  const auto sums = at::logaddexp(a.log_sum_exp, b.log_sum_exp);
  // Rows that see nothing: the difference of two infinities would be NaN.
  const auto base = sums.masked_fill(sums == -INFINITY, 0);
  const auto weighed = [&](const AttentionOutput& part) {
    return part.out * (part.log_sum_exp - base).exp_().unsqueeze(3);
  };
  return {(weighed(a) + weighed(b)).to(a.out.scalar_type()), sums};
}

}  // namespace

AttentionOutput lowered_forward(const Plan& plan, const Tensor& q, const Tensor& k, const Tensor& v,
                                double scale) {
  AttentionOutput result;
  for (const auto& any : plan.parts) {
    const auto part =
        std::visit([&](const auto& of) { return forward_of(of, q, k, v, scale); }, any);
    result = result.out.defined() ? merged(result, part) : part;
  }
  return result;
}

AttentionInputGradients lowered_backward(const Plan& plan, const Tensor& q, const Tensor& k,
                                         const Tensor& v, double scale,
                                         const AttentionSaved& saved) {
  AttentionInputGradients result;
  for (const auto& any : plan.parts) {
    const auto part =
        std::visit([&](const auto& of) { return backward_of(of, q, k, v, scale, saved); }, any);
    if (!result.query.defined()) {
      result = part;
      continue;
    }
    result.query.add_(part.query);
    result.key.add_(part.key);
    result.value.add_(part.value);
  }
  return result;
}

}  // namespace torchlore::attention
