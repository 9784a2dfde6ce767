#pragma once

#include <torch/optim/sgd.h>

#include "torchlore/core/scaled_step.hpp"

namespace torchlore {

/// `torch::optim::SGD`, with momentum, on LibTorch's fused kernel: one pass over parameter,
/// gradient and momentum instead of a pass per operation, and no temporary tensors.
///
/// Drop-in: options, parameter groups, state, messages and archives are those of
/// `torch::optim::SGD`, so either loads what the other saved, and a scheduler works on both.
/// ```cpp
/// torchlore::FusedSGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
/// ```
/// Parameters that the kernel cannot take are stepped by `torch::optim::SGD` itself: those with a
/// sparse gradient; those whose gradient or momentum differs from them in dtype, device or strides;
/// those with gaps or overlap in memory; those on a device that LibTorch has no fused kernel for;
/// and float16 and bfloat16 on the CPU, where LibTorch's kernel computes but does not store the new
/// parameters (seen in 2.13).
/// @note O(elements); host syncs: 0. float32 and float64 agree with the namesake to rounding.
class FusedSGD : public torch::optim::SGD, public ScaledStep {
 public:
  using torch::optim::SGD::SGD;

  /// Makes one step; parameters without a gradient are left alone.
  /// @param closure computes the loss again, with gradients enabled, before the step.
  /// @return what the closure returns; an undefined tensor without one.
  /// @throws c10::TypeError for a complex parameter, before anything is changed.
  torch::Tensor step(LossClosure closure = nullptr) override;

  /// See `ScaledStep`. The kernel divides float32 gradients while it reads them; others are divided
  /// first. Either way the result equals, bit for bit, `divide_gradients_` followed by `step()`.
  /// Gradients are not checked: whoever calls has made sure that they are finite.
  /// @throws c10::ValueError unless `divisor` is one number; c10::TypeError unless it is floating.
  void step_scaled(const at::Tensor& divisor) override;
};

}  // namespace torchlore
