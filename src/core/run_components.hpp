#pragma once

#include <functional>
#include <string>

#include "differences.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace torchlore::detail {

/// One object of a run, whatever its type.
struct RunComponent {
  std::string name;
  std::function<StateDict()> state;
  /// Finds what does not fit; changes nothing.
  std::function<void(const StateDict&, Differences&)> check;
  /// Comes after a `check` that found nothing.
  std::function<void(const StateDict&)> load;
  bool may_throw = false;  ///< `load` is not ours to vouch for: undone if one of these throws
};

RunComponent module_component(std::string name, torch::nn::Module& module);
RunComponent optimizer_component(std::string name, torch::optim::Optimizer& optimizer,
                                 const torch::nn::Module& model);
RunComponent tensor_component(std::string name, at::Tensor& tensor);
/// For int64_t, double, bool and std::string.
template <typename T>
RunComponent value_component(std::string name, T& value);
/// The random generators of all devices.
RunComponent rng_component();

}  // namespace torchlore::detail
