#pragma once

namespace torch::optim {
class OptimizerOptions;
}

namespace torchlore::schedule::detail {

/// The momentum of SGD and RMSprop, or the first beta of Adam and AdamW; null where there is none.
double* momentum_of(torch::optim::OptimizerOptions& options);
/// Whether there is one.
bool has_momentum(const torch::optim::OptimizerOptions& options);

}  // namespace torchlore::schedule::detail
