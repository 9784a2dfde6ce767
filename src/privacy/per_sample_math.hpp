#pragma once

#include <ATen/core/Tensor.h>

/// Sums over gradients of single examples. Everything kept and weighed goes through these.
namespace torchlore::detail {

/// float64 stays, all else is worked with in float32.
at::ScalarType accumulation_type(at::ScalarType dtype);

/// Squared norms [B] float64 of [B, …].
at::Tensor squared_norms(const at::Tensor& gradients);

/// Σᵢ factorsᵢ·gradientsᵢ: [B, *sizes] → [*sizes], in the gradients' accumulation type.
/// @param factors [B] float64.
at::Tensor weighted_sum(const at::Tensor& gradients, const at::Tensor& factors);

/// Zeroes whole examples of [B, …] where `dropped` [B] is true; a new tensor.
at::Tensor without_examples(const at::Tensor& gradients, const at::Tensor& dropped);

}  // namespace torchlore::detail
