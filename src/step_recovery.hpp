#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "torchlore/step.hpp"

namespace torchlore {

/// What `TrainingStep` needs to try a micro-batch again, whole or in parts.
class TrainingStep::Recovery {
 public:
  /// Checks the options, and gives retry and split the step's reducer where they have none.
  Recovery(TrainingStepOptions& options, const std::vector<torch::optim::Optimizer*>& optimizers);

  /// Runs `attempt`, again and again as `retry` says.
  void run(const std::function<void()>& attempt);
  /// Runs `forward`; where there are ranks, all go on only if that of each went well: what comes
  /// next talks to them.
  void run_forward(const std::function<void()>& forward);

  std::optional<BatchSplitter> splitter;

 private:
  const std::optional<RetryOptions>& retry_;
  std::vector<at::Tensor> parameters_;
  Reducer ranks_;
  detail::LargestOverRanks any_failed_;
};

namespace detail {

/// [B] losses of examples as their sum and count; a 0-d one is a mean already.
Loss sum_of_examples(const at::Tensor& losses);

}  // namespace detail
}  // namespace torchlore
