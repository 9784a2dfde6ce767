#pragma once

#include <ATen/core/Tensor.h>

namespace torchlore {

/// An optimizer that divides its gradients while it reads them, so that unscaling, averaging and
/// clipping cost no pass over memory of their own. `LossScaler` and `TrainingStep` look for this
/// interface beside `torch::optim::Optimizer`; torchlore's fused optimizers have it.
class ScaledStep {
 public:
  virtual ~ScaledStep() = default;

  /// Makes one step with every gradient divided by `divisor` first. The stored gradients are
  /// divided too, so that they read the same after the step as on the path that writes them.
  /// @param divisor 0-d floating tensor, finite and > 0, on any device.
  virtual void step_scaled(const at::Tensor& divisor) = 0;
};

}  // namespace torchlore
