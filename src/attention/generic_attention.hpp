#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "attention_op.hpp"

/// Block-sparse attention made of LibTorch's own ops on gathered tiles: for any device and dtype, and,
/// since autograd can follow it, for second derivatives.
namespace torchlore::attention {

/// Output and log-sum-exp over the pairs that `tiles` show. Differentiable.
std::tuple<at::Tensor, at::Tensor> generic_forward(const Inputs& inputs, const Settings& settings,
                                                   const TileLayouts& tiles);

/// The gradients, from what the forward gave, or attention over more pairs. `grad_log_sum_exp` may be undefined. Differentiable in
/// all tensors if `output` and `log_sum_exp` were computed by `generic_forward` under autograd.
Gradients generic_backward(const at::Tensor& grad_output, const at::Tensor& grad_log_sum_exp,
                           const at::Tensor& output, const at::Tensor& log_sum_exp,
                           const Inputs& inputs, const Settings& settings, const TileLayouts& tiles,
                           bool bias_gradient);

}  // namespace torchlore::attention
