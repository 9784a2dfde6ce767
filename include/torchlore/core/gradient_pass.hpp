#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/FunctionRef.h>

#include <limits>

#include "torchlore/core/reducer.hpp"

/// The fused pass over gradients: what loss scaling, clipping and accumulation share.
///
/// One read gives the norm and tells whether anything is not finite; then at most one write divides
/// by everything at once (loss scale × count of the window × clip). All gradients may differ in
/// dtype (float16, bfloat16, float32, float64), device, layout and strides.
namespace torchlore {

/// Throws c10::TypeError, naming the first offender, unless all gradients are float16, bfloat16,
/// float32 or float64.
void check_gradients(at::TensorList grads);

/// What one read over all gradients tells. Both are 0-d tensors on the first gradient's device.
struct GradientStats {
  /// The norm of all gradients as one vector, as they are stored (still multiplied by a loss
  /// scale). float32, or float64 if any gradient is; inf or NaN if any element is.
  at::Tensor norm;
  /// float32: 1 if any element is inf or NaN, else 0.
  at::Tensor found_inf;
};

/// Reads all gradients once: norm and finite check.
///
/// The sum is accumulated in float64, in an order that does not depend on the number of threads.
/// @param grads   dense or sparse (COO) floating tensors; not modified; may be empty (norm 0).
/// @param norm_type p of the p-norm: 2, 1, infinity, or any other p > 0 (slower: one LibTorch
///                kernel per tensor).
/// @param reducer combines the p-th powers over ranks (SUM; MAX for the infinity norm, and for
///                found_inf), for gradients sharded over ranks.
/// @throws c10::TypeError  for integer or complex gradients; c10::ValueError unless norm_type > 0.
/// @note O(elements); host syncs: 0.
GradientStats gradient_stats(at::TensorList grads, double norm_type = 2.0,
                             const Reducer& reducer = {});

/// Divides all gradients in place: one read and one write, or nothing at all if `divisor` is 1.
/// @param divisor 0-d floating tensor. A float16 or bfloat16 gradient is divided in float32 and
///                rounded once; a float64 gradient in float64.
/// @note O(elements); host syncs: 0.
void divide_gradients_(at::TensorList grads, const at::Tensor& divisor);

/// A max_norm that never clips.
inline constexpr double kNoClip = std::numeric_limits<double>::infinity();

/// What a norm means once everything the gradients still carry is divided out.
struct ClippedNorm {
  at::Tensor norm;     ///< the norm after `divisor`, before clipping
  at::Tensor divisor;  ///< what the stored gradients must be divided by, clipping included
};

/// Folds a divisor (loss scale × count) and clipping into one: with n = norm / divisor, the result
/// divides by divisor × max(1, (n + 1e-6) / max_norm).
/// @param norm     0-d, as `gradient_stats` gave it.
/// @param divisor  0-d, or undefined for 1; brought to the norm's device and dtype.
/// @param max_norm > 0, or `kNoClip`.
/// @note Host syncs: 0. A non-finite norm gives a non-finite divisor.
ClippedNorm clip_to_norm(const at::Tensor& norm, const at::Tensor& divisor, double max_norm);

/// The same where the limit depends on the norm: `max_norm` is called once, with the norm after
/// `divisor`, before clipping.
/// @throws c10::ValueError if it gives a limit that is not above 0.
ClippedNorm clip_to_norm(const at::Tensor& norm, const at::Tensor& divisor,
                         c10::function_ref<double(const at::Tensor& norm)> max_norm);

}  // namespace torchlore
