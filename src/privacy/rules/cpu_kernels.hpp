#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "layer_rule.hpp"

/// The rules' way to the kernels for float32 on the CPU (src/privacy/kernels). Every function gives nothing
/// where its kernel does not apply: another dtype or device, or a layout that it does not know.
namespace torchlore::detail {

/// Whether the kernels read it: float32 on the CPU, strided, and not a lazy negation.
bool is_for_kernels(const at::Tensor& value);

/// Squared norms [B] float64 of [B, …].
std::optional<at::Tensor> squared_norms_by_kernel(const at::Tensor& gradients);

/// Σᵢ factorsᵢ·gradientsᵢ: [B, *sizes] → [*sizes]. Examples with factor 0 are not read.
/// @param factors [B] float64.
std::optional<at::Tensor> weighted_sum_by_kernel(const at::Tensor& gradients,
                                                 const at::Tensor& factors);

/// gᵀx of each example's rows: x [R, d], g [R, p] → [B, p, d].
/// @param layout of R; `dim` is not looked at
/// @param is_kept whether the products are wanted, or their norms alone
std::optional<InstantiatedGradients> products_by_kernel(const at::Tensor& rows,
                                                        const at::Tensor& gradient,
                                                        const ExampleLayout& layout, bool is_kept);

/// Sums of each example's rows: [R, p] → [B, p].
std::optional<InstantiatedGradients> row_sums_by_kernel(const at::Tensor& gradient,
                                                        const ExampleLayout& layout);

/// The weight of a convolution, with any stride, padding, dilation and groups, transposed or not:
/// [B, *sizes of the weight]. LibTorch's ops keep 3-d convolutions, whose places lie in no regular rows,
/// and several images per example, whose sum the kernel does not form.
/// @param gradient, input [N, C, …] with one image per example
std::optional<InstantiatedGradients> convolution_by_kernel(const TapeNode& node,
                                                           at::IntArrayRef weight,
                                                           const ExampleLayout& layout,
                                                           const at::Tensor& gradient,
                                                           const at::Tensor& input, bool is_kept);

/// Weight and bias of a layer, RMS or group norm, in this order.
std::optional<std::vector<InstantiatedGradients>> norm_by_kernel(const TapeNode& node,
                                                                 const ExampleLayout& layout,
                                                                 const at::Tensor& gradient);

/// Squared norms [B] float64 of an embedding's table.
/// @param tokens [R] int64, gradient [R, d], with zeros where a token gets none
std::optional<at::Tensor> embedding_norms_by_kernel(const at::Tensor& tokens,
                                                    const at::Tensor& gradient,
                                                    const ExampleLayout& layout);

/// Adds Σᵢ factorsᵢ·gᵢ to the table [V, d]; false where the kernel does not apply.
bool add_embedding_by_kernel(const at::Tensor& tokens, const at::Tensor& gradient,
                             const ExampleLayout& layout, const at::Tensor& factors,
                             const at::Tensor& table);

}  // namespace torchlore::detail
