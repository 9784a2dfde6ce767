#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "attention_op.hpp"
#include "lowering.hpp"

namespace torchlore::attention {

/// Attention by a plan, for inputs that the compiled kernels serve, without bias, slopes and dropout:
/// a part knows other positions than the layout.
/// Otherwise as `cpu_forward`, part by part.
std::tuple<at::Tensor, at::Tensor> lowered_forward(const Plan& plan, const Inputs& inputs,
                                                   const Settings& settings);

/// As `cpu_backward`, part by part.
Gradients lowered_backward(const Plan& plan, const at::Tensor& grad_output,
                           const at::Tensor& grad_log_sum_exp, const at::Tensor& output,
                           const at::Tensor& log_sum_exp, const Inputs& inputs,
                           const Settings& settings);

}  // namespace torchlore::attention
