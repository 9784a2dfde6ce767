#pragma once

#include <torch/optim/adamw.h>

#include "torchlore/core/scaled_step.hpp"

namespace torchlore {

/// `torch::optim::AdamW` on LibTorch's fused kernel: one pass over parameter, gradient and state
/// instead of a pass per operation, and no temporary tensors.
///
/// Drop-in: options, parameter groups, state, messages and archives are those of
/// `torch::optim::AdamW`, so either loads what the other saved, and a scheduler works on both.
/// ```cpp
/// torchlore::FusedAdamW optimizer(model->parameters(), torch::optim::AdamWOptions(3e-4));
/// ```
/// Parameters that the kernel cannot take are stepped by `torch::optim::AdamW` itself: those whose
/// gradient or state differs from them in dtype, device or strides, those with gaps or overlap in
/// memory, and those on a device that LibTorch has no fused kernel for.
/// @note O(elements); host syncs: 0. float32 and float64 agree with the namesake to rounding.
///       float16 and bfloat16 are computed in float32 and rounded once, where the namesake rounds
///       after each operation.
/// Source: Loshchilov, Hutter (2019), arXiv:1711.05101, algorithm 2.
class FusedAdamW : public torch::optim::AdamW, public ScaledStep {
 public:
  using torch::optim::AdamW::AdamW;

  /// Makes one step; parameters without a gradient are left alone.
  /// @param closure computes the loss again, with gradients enabled, before the step.
  /// @return what the closure returns; an undefined tensor without one.
  /// @throws c10::TypeError for a complex parameter and c10::NotImplementedError for a sparse
  ///         gradient, both before anything is changed.
  torch::Tensor step(LossClosure closure = nullptr) override;

  /// See `ScaledStep`. The kernel divides float32 gradients while it reads them; others are divided
  /// first. Either way the result equals, bit for bit, `divide_gradients_` followed by `step()`.
  /// Gradients are not checked: whoever calls has made sure that they are finite.
  /// @throws c10::ValueError unless `divisor` is one number; c10::TypeError unless it is floating.
  void step_scaled(const at::Tensor& divisor) override;
};

}  // namespace torchlore
