#pragma once

#include <ATen/core/Tensor.h>

#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/core/reducer.hpp"

/// Gradient clipping by norm and by value.
namespace torchlore {

/// Options of `clip_grad_norm_`.
struct ClipGradNormOptions {
  /// The p of the p-norm: 2, 1, infinity, or any p > 0.
  double norm_type = 2.0;
  /// Throw if the norm is inf or NaN, before anything is written. Costs a host sync.
  bool error_if_nonfinite = false;
  /// A factor that all gradients still carry, divided out in the same pass: a loss scale, the count
  /// of an accumulation window (`GradientAccumulator::divisor()`), or their product. Undefined: 1.
  at::Tensor divisor = {};
  /// For gradients sharded over ranks: combines the norm. Leave alone where every rank holds all.
  Reducer reducer = {};
};

/// Scales all gradients together so that their norm is `max_norm` at most.
///
/// One read over all gradients, then one write, or none where nothing is to be changed:
/// g ← g / max(1, (‖g‖ + 1e-6) / max_norm), the factor of `torch.nn.utils.clip_grad_norm_`.
/// Gradients may differ in dtype, device, layout and strides; parameters without one are skipped.
///
/// ```cpp
/// loss.backward();
/// torchlore::clip_grad_norm_(model->parameters(), 1.0);
/// optimizer.step();
/// ```
/// @param parameters whose gradients are clipped in place.
/// @param max_norm > 0; infinity only measures.
/// @param options see ClipGradNormOptions.
/// @return  the norm before clipping, after `options.divisor`: 0-d, float32 (float64 if a gradient
///          is), on the first gradient's device; 0 if no parameter has a gradient. A non-finite
///          norm makes all gradients NaN or 0, as in LibTorch: see `error_if_nonfinite`, or
///          `LossScaler`.
/// @throws c10::ValueError for an empty list of parameters, or a bad max_norm or norm_type;
///         c10::TypeError for integer or complex gradients; c10::Error for a non-finite norm if
///         asked.
/// @note O(elements): 4 bytes read, then 4 read and 4 written per float32 element; host syncs: 0
///       (1 with error_if_nonfinite).
/// Source: Pascanu et al. (2013), arXiv:1211.5063.
at::Tensor clip_grad_norm_(const ParameterView& parameters, double max_norm,
                           const ClipGradNormOptions& options = {});

/// `clip_grad_norm_` for each group of the view (of an optimizer) on its own.
/// @return the norms, 1-d [groups], in the order of the groups.
at::Tensor clip_grad_norm_per_group_(const ParameterView& parameters, double max_norm,
                                     const ClipGradNormOptions& options = {});

/// Clamps every element of every gradient to [-clip_value, clip_value]. NaN stays NaN.
/// @param parameters whose gradients are clamped in place; a sparse gradient is coalesced first.
/// @param clip_value > 0 and finite.
/// @throws c10::ValueError for an empty list of parameters or a bad value; c10::TypeError for
///         integer or complex gradients.
/// @note O(elements); host syncs: 0.
void clip_grad_value_(const ParameterView& parameters, double clip_value);

}  // namespace torchlore
