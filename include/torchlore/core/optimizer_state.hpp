#pragma once

#include "torchlore/core/state_dict.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace torchlore {

/// The state of an optimizer, keyed by the names its parameters have in `model`.
///
/// Works for `torch::optim::SGD`, `Adam`, `AdamW`, `RMSprop`, `Adagrad` and classes derived from
/// them (torchlore's fused optimizers). Holds
/// - `kind`: the name of the class among those five, as bytes;
/// - `groups/<i>/lr`, `momentum`, `beta1`, …: the options of group i, float64 or int64 0-d tensors;
/// - `groups/<i>/parameters`: the names of its parameters, as bytes, one per line;
/// - `state/<name>/step`, `exp_avg`, …: what the optimizer keeps per parameter, where it has begun
/// to.
///
/// The tensors share memory with the optimizer; clone them to keep a copy.
/// @throws c10::ValueError if a parameter of the optimizer is not one of the model's.
/// @throws c10::NotImplementedError for another optimizer. LBFGS is one: it keeps flat vectors over
///         all parameters, which have no names. So is a derived one that keeps other state than its
///         base.
StateDict optimizer_state_dict(const torch::optim::Optimizer& optimizer,
                               const torch::nn::Module& model);

/// Loads what `optimizer_state_dict` gave, into an optimizer of the same kind with the same groups.
///
/// Options are restored too (a learning rate that a scheduler had changed). State that exists is
/// overwritten in place; state that was not there yet when saved is removed, state that is not
/// there yet now is made, on the device and in the strides of its parameter.
/// The order of the parameters within a group is free.
/// @throws c10::ValueError naming the differences (the first ten, and how many there are), and as
///         `optimizer_state_dict`; the optimizer is unchanged then.
void load_optimizer_state_dict(torch::optim::Optimizer& optimizer, const torch::nn::Module& model,
                               const StateDict& state);

}  // namespace torchlore
