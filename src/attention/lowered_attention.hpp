#pragma once

#include <ATen/core/Tensor.h>

#include "lowering.hpp"
#include "shifted_attention.hpp"

namespace torchlore::attention {

/// Attention by a plan on the CPU, part by part. Arguments and results as of `shifted_forward`, for
/// head dimensions up to 256.
AttentionOutput lowered_forward(const Plan& plan, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, double scale);

/// The gradients of all three.
AttentionInputGradients lowered_backward(const Plan& plan, const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, double scale,
                                         const AttentionSaved& saved);

}  // namespace torchlore::attention
