#include "cpu_attention.hpp"

#include <ATen/Functions.h>

#include "../core/buffer_pool.hpp"
#include "../core/kernels/element_of.hpp"
#include "kernels/attention_kernels.hpp"
#include "memory_order.hpp"

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

/// The tensor with rows that lie in one piece.
Tensor in_rows(const Tensor& x) { return x.size(3) == 1 || x.stride(3) == 1 ? x : x.contiguous(); }

Rows rows_of(const Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

Rows written_rows_of(Tensor& x) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

/// A problem, and what its pointers point into, the tiles excepted.
class Problem {
 public:
  Problem(const Inputs& in, const Settings& settings, const TileLayouts& tiles)
      : query_(in_rows(in.query)), key_(in_rows(in.key)), value_(in_rows(in.value)) {
    problem_ = {.element = kernels::element_of(query_.scalar_type()),
                .batch = query_.size(0),
                .heads = query_.size(1),
                .key_heads = key_.size(1),
                .queries = query_.size(2),
                .keys = key_.size(2),
                .head_dim = query_.size(3),
                .value_dim = value_.size(3),
                .q = rows_of(query_),
                .k = rows_of(key_),
                .v = rows_of(value_),
                .layouts = tiles.data(),
                .scale = settings.scale,
                .query_offset = settings.query_offset,
                .dropout = settings.dropout,
                .dropout_seed = static_cast<uint64_t>(settings.dropout_seed)};
    if (in.bias) set_bias(*in.bias);
    if (in.alibi_slopes) {
      slopes_ = in.alibi_slopes->to(at::kFloat).contiguous();
      problem_.alibi_slopes = slopes_.const_data_ptr<float>();
    }
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  const AttentionProblem& operator*() const { return problem_; }

 private:
  void set_bias(const Tensor& bias) {
    bias_ = in_rows(bias.to(at::kFloat));
    const auto stride = [&](int64_t axis) {
      return bias_.size(axis) == 1 ? 0 : bias_.stride(axis);
    };
    problem_.bias = bias_.const_data_ptr<float>();
    problem_.bias_batch_stride = stride(0);
    problem_.bias_head_stride = stride(1);
    problem_.bias_row_stride = stride(2);
  }

  Tensor query_, key_, value_, bias_, slopes_;
  AttentionProblem problem_;
};

}  // namespace

bool runs_on_cpu_kernels(const Inputs& in) {
  constexpr int64_t kMostDim = 256;
  const bool dims =
      in.query.size(3) <= kMostDim && in.value.size(3) <= kMostDim && in.value.size(3) >= 1;
  // The kernels read the bias as float32, one number per key.
  const bool bias =
      !in.bias || (in.query.scalar_type() != at::kDouble && in.bias->size(3) == in.key.size(2));
  return in.query.is_cpu() && dims && bias;
}

std::tuple<Tensor, Tensor> cpu_forward(const Inputs& inputs, const Settings& settings,
                                       const TileLayouts& tiles,
                                       kernels::AttentionStatistics* statistics) {
  const Problem problem(inputs, settings, tiles);
  const auto& query = inputs.query;
  auto output = empty_as(query, inputs.value.size(3));
  const auto sums = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  auto log_sum_exp =
      at::empty({query.size(0), query.size(1), query.size(2)}, query.options().dtype(sums));
  kernels::attention_forward(*problem, written_rows_of(output), log_sum_exp.mutable_data_ptr(),
                             scratch(), statistics);
  return {output, log_sum_exp};
}

Gradients cpu_backward(const Tensor& grad_output, const Tensor& grad_log_sum_exp,
                       const Tensor& output, const Tensor& log_sum_exp, const Inputs& inputs,
                       const Settings& settings, const TileLayouts& tiles,
                       kernels::AttentionStatistics* statistics) {
  const Problem problem(inputs, settings, tiles);
  const auto out = in_rows(output);
  const auto grad_out = in_rows(grad_output.to(output.scalar_type()));
  const auto sums = log_sum_exp.contiguous();
  const auto grad_sums =
      grad_log_sum_exp.defined() ? grad_log_sum_exp.to(sums.scalar_type()).contiguous() : Tensor();
  Gradients result{empty_as(inputs.query, inputs.query.size(3)),
                   empty_as(inputs.key, inputs.key.size(3)),
                   empty_as(inputs.value, inputs.value.size(3)),
                   {}};
  kernels::attention_backward(
      *problem,
      {.out = rows_of(out),
       .log_sum_exp = sums.const_data_ptr(),
       .grad_out = rows_of(grad_out),
       .grad_log_sum_exp = grad_sums.defined() ? grad_sums.const_data_ptr() : nullptr,
       .grad_q = written_rows_of(result.query),
       .grad_k = written_rows_of(result.key),
       .grad_v = written_rows_of(result.value)},
      scratch(), kernels::Passes::automatic, statistics);
  return result;
}

}  // namespace torchlore::attention
