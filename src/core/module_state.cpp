#include "torchlore/core/module_state.hpp"

#include <ATen/MemoryOverlap.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/nn/module.h>

#include <unordered_set>

#include "state_parts.hpp"

namespace torchlore {

StateDict module_state_dict(const torch::nn::Module& module) {
  StateDict state;
  std::unordered_set<const void*> seen;
  const auto take = [&](const auto& named_tensors) {
    for (const auto& item : named_tensors) {
      const at::Tensor& tensor = item.value();
      if (!tensor.defined() || !seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
      TORCH_CHECK_VALUE(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, "'", item.key(),
                        "' cannot be restored in place, because its elements share memory (an "
                        "expanded tensor); register a contiguous() copy of it");
      state.emplace(item.key(), tensor.detach());
    }
  };
  take(module.named_parameters());
  take(module.named_buffers());
  return state;
}

void load_module_state_dict(torch::nn::Module& module, const StateDict& state) {
  detail::Differences differences;
  detail::compare_states(module_state_dict(module), state, differences);
  detail::check_fits(differences, "the module");
  detail::apply_module_state(module, state);
}

namespace detail {

void apply_module_state(torch::nn::Module& module, const StateDict& state) {
  const c10::NoGradGuard no_grad;
  for (auto& [name, tensor] : module_state_dict(module)) tensor.copy_(state.at(name));
}

}  // namespace detail
}  // namespace torchlore
