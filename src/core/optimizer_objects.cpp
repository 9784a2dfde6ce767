#include "optimizer_objects.hpp"

#include <algorithm>
#include <type_traits>

#include "optimizer_kinds.hpp"

namespace torchlore::detail {

OptimizerObjects::OptimizerObjects(torch::optim::Optimizer& optimizer) : optimizer_(&optimizer) {
  for (const auto& group : optimizer.param_groups()) options_.push_back(group.options().clone());
  for (const auto& [key, state] : optimizer.state()) states_.emplace_back(key, state->clone());
}

OptimizerObjects::~OptimizerObjects() = default;
OptimizerObjects::OptimizerObjects(OptimizerObjects&&) noexcept = default;
OptimizerObjects& OptimizerObjects::operator=(OptimizerObjects&&) noexcept = default;

void OptimizerObjects::put_back() const {
  auto& groups = optimizer_->param_groups();
  for (size_t g = 0; g < std::min(groups.size(), options_.size()); ++g) {
    groups[g].set_options(options_[g]->clone());
  }
  optimizer_->state().clear();
  for (const auto& [key, state] : states_) optimizer_->state()[key] = state->clone();
}

void for_each_state_tensor(const torch::optim::Optimizer& optimizer,
                           const std::function<void(const at::Tensor&)>& f) {
  visit_kind(optimizer, [&](const auto& kind) {
    using State = typename std::decay_t<decltype(kind)>::State;
    // By parameters: the order of the map may change.
    for (const auto& group : optimizer.param_groups()) {
      for (const auto& parameter : group.params()) {
        const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
        if (found == optimizer.state().end()) continue;
        auto* state = dynamic_cast<State*>(found->second.get());
        TORCH_CHECK_NOT_IMPLEMENTED(state, "the optimizer keeps state of type ",
                                    c10::demangle(typeid(*found->second).name()), " where ",
                                    kind.name, " keeps its own; it cannot be put back");
        for_each_tensor(*state, [&](const char*, const at::Tensor& t, bool) { f(t); });
      }
    }
  });
}

}  // namespace torchlore::detail
