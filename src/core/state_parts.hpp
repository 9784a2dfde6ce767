#pragma once

#include "differences.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

/// The two halves of the load functions: a check (for a module, `compare_states`) finds what does not
/// fit and changes nothing; `apply_*` writes, and cannot fail after a check that found nothing.
namespace torchlore::detail {

void apply_module_state(torch::nn::Module& module, const StateDict& state);

void check_optimizer_state(const torch::optim::Optimizer& optimizer, const torch::nn::Module& model,
                           const StateDict& state, Differences& differences);
void apply_optimizer_state(torch::optim::Optimizer& optimizer, const torch::nn::Module& model,
                           const StateDict& state);

}  // namespace torchlore::detail
