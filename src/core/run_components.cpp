#include "run_components.hpp"

#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <utility>

#include "state_parts.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/core/optimizer_state.hpp"
#include "torchlore/core/rng.hpp"

namespace torchlore::detail {
namespace {

/// The generators that are here, too: a run may go on with other accelerators than it was saved with.
StateDict common_generators(const StateDict& saved) {
  const auto here = RngState::capture().state_dict();
  StateDict common;
  for (const auto& [device, state] : saved) {
    if (here.contains(device)) common.emplace(device, state);
  }
  return common;
}

void check_generators(const StateDict& saved, Differences& differences) {
  const auto common = common_generators(saved);
  StateDict here;
  for (const auto& [device, state] : RngState::capture().state_dict()) {
    if (device == "cpu" || common.contains(device)) here.emplace(device, state);
  }
  compare_states(here, common, differences);
}

void load_generators(const StateDict& saved) {
  RngState state;
  state.load_state_dict(common_generators(saved));
  state.restore();
}

/// A component that must be saved with the keys, shapes and dtypes it has here.
RunComponent fixed_component(std::string name, std::function<StateDict()> state,
                             std::function<void(const StateDict&)> load) {
  const auto check = [state](const StateDict& saved, Differences& differences) {
    compare_states(state(), saved, differences);
  };
  return {std::move(name), std::move(state), check, std::move(load)};
}

}  // namespace

RunComponent module_component(std::string name, torch::nn::Module& module) {
  module_state_dict(module);  // refuses what could be saved but not restored
  return fixed_component(
      std::move(name), [&module] { return module_state_dict(module); },
      [&module](const StateDict& saved) { apply_module_state(module, saved); });
}

RunComponent optimizer_component(std::string name, torch::optim::Optimizer& optimizer,
                                 const torch::nn::Module& model) {
  optimizer_state_dict(optimizer, model);  // refuses what cannot be saved
  return {std::move(name), [&] { return optimizer_state_dict(optimizer, model); },
          [&](const StateDict& saved, Differences& differences) {
            check_optimizer_state(optimizer, model, saved, differences);
          },
          [&](const StateDict& saved) { apply_optimizer_state(optimizer, model, saved); }};
}

RunComponent tensor_component(std::string name, at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined(), "the tensor '", name,
                    "' is undefined; give it a value first");
  return fixed_component(
      std::move(name),
      [&tensor] {
        return StateDict{{"value", tensor.detach()}};
      },
      [&tensor](const StateDict& saved) {
        const c10::NoGradGuard no_grad;
        tensor.copy_(saved.at("value"));
      });
}

template <typename T>
RunComponent value_component(std::string name, T& value) {
  return fixed_component(
      std::move(name),
      [&value] {
        const auto dtype = c10::CppTypeToScalarType<T>::value;
        return StateDict{{"value", at::scalar_tensor(value, at::TensorOptions(dtype))}};
      },
      [&value](const StateDict& saved) { value = saved.at("value").item<T>(); });
}

template RunComponent value_component(std::string, int64_t&);
template RunComponent value_component(std::string, double&);
template RunComponent value_component(std::string, bool&);

template <>
RunComponent value_component(std::string name, std::string& value) {
  const auto check = [](const StateDict& saved, Differences& differences) {
    // A text may have any length.
    const auto text = saved.find("text");
    const auto here = text_tensor(text == saved.end() ? "" : tensor_text(text->second));
    compare_states({{"text", here}}, saved, differences);
  };
  return {std::move(name),
          [&value] {
            return StateDict{{"text", text_tensor(value)}};
          },
          check, [&value](const StateDict& saved) { value = tensor_text(saved.at("text")); }};
}

RunComponent rng_component() {
  return {"rng", [] { return RngState::capture().state_dict(); }, check_generators, load_generators,
          /*may_throw=*/true};
}

}  // namespace torchlore::detail
