#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "torchlore/core/loss.hpp"

namespace torchlore {

/// What one call of `TrainingStep` did. It holds tensors where they were computed: numbers come to
/// the host when they are asked for, and not before.
class StepResult {
 public:
  /// What became of the call.
  enum class Outcome {
    accumulated,  ///< the window is not full yet: gradients were added up, nothing was stepped
    stepped,      ///< the optimizers stepped
    skipped,      ///< the window was full, but a gradient was inf or NaN under a loss scaler, or
                  ///< the spike guard refused it
    rolled_back,  ///< as skipped, and the spike guard put everything back to its last snapshot
    nothing       ///< the window held no examples or counts: there was nothing to learn from
  };

  StepResult() = default;
  /// Made by `TrainingStep`. An undefined tensor means "not there".
  StepResult(Outcome outcome, Loss loss, at::Tensor grad_norm)
      : outcome_(outcome), loss_(std::move(loss)), grad_norm_(std::move(grad_norm)) {}

  /// What became of the call. Host syncs: 0, as for the two below.
  Outcome outcome() const { return outcome_; }
  /// Whether the optimizers stepped.
  bool stepped() const { return outcome_ == Outcome::stepped; }
  /// Whether the step was left out because a gradient was inf or NaN, or by the spike guard.
  bool skipped() const { return outcome_ == Outcome::skipped || rolled_back(); }
  /// Whether the spike guard put parameters and optimizers back.
  bool rolled_back() const { return outcome_ == Outcome::rolled_back; }

  /// The mean loss of this call's micro-batch; NaN if it had no examples. Host syncs: 1 on an
  /// accelerator.
  double loss() const;
  /// The norm of all gradients of the window, unscaled, averaged, before clipping. NaN if it was
  /// not measured: without a clipper that limits it, a loss scaler or a spike guard, and inside a
  /// window. Host syncs:
  /// 1 on an accelerator.
  double grad_norm() const;

  /// The mean loss as a 0-d tensor on its device, detached; undefined if there is none.
  at::Tensor loss_tensor() const;
  /// The norm as a 0-d tensor on its device; undefined if it was not measured.
  const at::Tensor& grad_norm_tensor() const { return grad_norm_; }

 private:
  Outcome outcome_ = Outcome::nothing;
  Loss loss_ = {};
  at::Tensor grad_norm_;
};

/// The outcome's name, as written in code.
constexpr const char* to_string(StepResult::Outcome outcome) {
  switch (outcome) {
    case StepResult::Outcome::accumulated:
      return "accumulated";
    case StepResult::Outcome::stepped:
      return "stepped";
    case StepResult::Outcome::skipped:
      return "skipped";
    case StepResult::Outcome::rolled_back:
      return "rolled_back";
    case StepResult::Outcome::nothing:
      return "nothing";
  }
  return "?";
}

}  // namespace torchlore
