#pragma once

#include "torchlore/core/state_dict.hpp"

namespace torch::nn {
class Module;
}

namespace torchlore {

/// The parameters and buffers of a module by their names (`"block.0.weight"`).
///
/// A tensor registered under several names (tied weights) appears once, under the first of them in
/// the order of `named_parameters()`. Undefined tensors (an absent bias) are left out. The tensors
/// share memory with the module; clone them to keep a copy.
/// ```cpp
/// torchlore::write_tensors("model.safetensors", torchlore::module_state_dict(*model));
/// torchlore::load_module_state_dict(*model,
/// torchlore::TensorFile::open("model.safetensors").tensors());
/// ```
/// @throws c10::ValueError if a tensor's elements share memory (a buffer made by `expand()`): it
///         could not be restored in place.
StateDict module_state_dict(const torch::nn::Module& module);

/// Copies a saved state into the parameters and buffers of a module, in place: every tensor keeps
/// its address, dtype, device and strides, so optimizers and tied names stay as they are.
/// @param state names, shapes and dtypes must be exactly those of `module_state_dict(module)`.
/// @throws c10::ValueError naming the differences (the first ten, and how many there are); the
///         module is unchanged then.
void load_module_state_dict(torch::nn::Module& module, const StateDict& state);

}  // namespace torchlore
