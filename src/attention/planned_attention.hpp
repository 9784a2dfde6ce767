#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "attention_op.hpp"

/// Attention on the CPU by the cheapest of our kernels: the tiles of the layout, or those and the shifts
/// of a plan.
namespace torchlore::attention {

/// Output, in memory ordered as query is, and log-sum-exp, of inputs that `runs_on_cpu_kernels`.
std::tuple<at::Tensor, at::Tensor> planned_forward(const Inputs& inputs, const Settings& settings);

/// The gradients of query, key and value, from what the forward gave.
Gradients planned_backward(const at::Tensor& grad_output, const at::Tensor& grad_log_sum_exp,
                           const at::Tensor& output, const at::Tensor& log_sum_exp,
                           const Inputs& inputs, const Settings& settings);

}  // namespace torchlore::attention
