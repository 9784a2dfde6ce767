#pragma once

#include <ATen/core/Tensor.h>

#include "attention_op.hpp"

/// LibTorch's own attention in place of ours.
namespace torchlore::attention {

/// Whether `at::scaled_dot_product_attention` computes the same as the op, and faster.
bool dense_is_faster(const Inputs& inputs, const Settings& settings);

/// The same by `at::scaled_dot_product_attention`, with a mask of all pairs where some are hidden.
at::Tensor dense_attention(const Inputs& inputs, const Settings& settings);

}  // namespace torchlore::attention
