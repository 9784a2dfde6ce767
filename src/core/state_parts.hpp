#pragma once

#include "differences.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

/// Parts of saved states. The two halves of the load functions: a check (for a module, `compare_states`) finds what does not
/// fit and changes nothing; `apply_*` writes, and cannot fail after a check that found nothing.
namespace torchlore::detail {

void apply_module_state(torch::nn::Module& module, const StateDict& state);

void check_optimizer_state(const torch::optim::Optimizer& optimizer, const torch::nn::Module& model,
                           const StateDict& state, Differences& differences);
void apply_optimizer_state(torch::optim::Optimizer& optimizer, const torch::nn::Module& model,
                           const StateDict& state);

/// The entries of `state` below `prefix`, without it.
StateDict state_below(const StateDict& state, const std::string& prefix);
/// Adds `part` to `state`, each key behind `prefix`.
void add_below(StateDict& state, const std::string& prefix, const StateDict& part);

}  // namespace torchlore::detail
