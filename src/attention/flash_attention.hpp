#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <tuple>

#include "attention_op.hpp"

/// Attention on CUDA: full tiles by LibTorch's flash kernels on gathered keys, partial ones by its ops
/// on gathered tiles, merged by their log-sum-exp.
namespace torchlore::attention {

/// Sequences that lie one after the other: [rows, heads, dim] each, with queries and keys of their own.
struct Packed {
  at::Tensor query_start;  ///< [sequences + 1] int32, on the device
  at::Tensor key_start;    ///< as `query_start`
  int64_t most_queries = 0;
  int64_t most_keys = 0;
};

/// Attention of each packed sequence by itself, without a mask.
struct PackedKernel {
  /// (query, key, value, packed, scale) -> (output, log-sum-exp [heads, rows] float32)
  std::function<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                   const at::Tensor&, const Packed&, double)>
      forward;
  /// (grad_output, query, key, value, output, log-sum-exp, packed, scale) -> gradients
  std::function<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      const at::Tensor&, const Packed&, double)>
      backward;
};

/// LibTorch's flash kernels for CUDA.
const PackedKernel& cuda_flash();

/// Whether the flash kernels serve the call: on CUDA, in 16 bits, and only where they proved, the first
/// time that a process asks, to give what gathered tiles give.
bool runs_on_flash(const Inputs& inputs, const Settings& settings);

/// Output and log-sum-exp.
std::tuple<at::Tensor, at::Tensor> flash_forward(const Inputs& inputs, const Settings& settings,
                                                 const TileLayouts& tiles,
                                                 const PackedKernel& kernel = cuda_flash());

/// The gradients of query, key and value; the log-sum-exp passes none. Those of keys are summed in
/// float32 and, on CUDA, in no fixed order.
Gradients flash_backward(const at::Tensor& grad_output, const at::Tensor& output,
                         const at::Tensor& log_sum_exp, const Inputs& inputs,
                         const Settings& settings, const TileLayouts& tiles,
                         const PackedKernel& kernel = cuda_flash());

}  // namespace torchlore::attention
