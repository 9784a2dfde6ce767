#include "torchlore/core/optimizer_state.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/nn/module.h>

#include <memory>
#include <set>
#include <sstream>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "optimizer_kinds.hpp"
#include "state_parts.hpp"

namespace torchlore {
namespace {

using detail::Differences;
using torch::optim::Optimizer;

using Names = std::unordered_map<const void*, std::string>;
/// The parameters of an optimizer by name.
using Parameters = std::map<std::string, at::Tensor>;

std::string group_key(size_t group, const std::string& rest) {
  return "groups/" + std::to_string(group) + "/" + rest;
}

/// A tied parameter goes by the first of its names, as in `module_state_dict`.
Names names_in(const torch::nn::Module& model) {
  Names names;
  for (const auto& item : model.named_parameters()) {
    names.emplace(item.value().unsafeGetTensorImpl(), item.key());
  }
  return names;
}

const std::string& name_of(const Names& names, const Optimizer& optimizer, size_t group,
                           size_t index) {
  const auto& parameter = optimizer.param_groups()[group].params()[index];
  const auto found = names.find(parameter.unsafeGetTensorImpl());
  TORCH_CHECK_VALUE(found != names.end(), "parameter ", index, " of group ", group,
                    " of the optimizer (shape ", parameter.sizes(),
                    ") is not a parameter of the model; pass the model whose parameters the "
                    "optimizer was made with");
  return found->second;
}

Parameters parameters_of(const Optimizer& optimizer, const Names& names) {
  Parameters parameters;
  for (size_t g = 0; g < optimizer.param_groups().size(); ++g) {
    const auto& params = optimizer.param_groups()[g].params();
    for (size_t i = 0; i < params.size(); ++i) {
      parameters.emplace(name_of(names, optimizer, g, i), params[i]);
    }
  }
  return parameters;
}

std::string group_names(const Optimizer& optimizer, const Names& names, size_t group) {
  std::string text;
  for (size_t i = 0; i < optimizer.param_groups()[group].params().size(); ++i) {
    text += (i ? "\n" : "") + name_of(names, optimizer, group, i);
  }
  return text;
}

at::Tensor option_value(double value) { return state_value(value); }
at::Tensor option_value(bool value) { return state_value(int64_t{value}); }

/// Kind, options and the names in every group.
template <typename Kind>
StateDict group_state(const Optimizer& optimizer, const Names& names, const Kind& kind) {
  StateDict state{{"kind", detail::text_tensor(kind.name)}};
  for (size_t g = 0; g < optimizer.param_groups().size(); ++g) {
    const auto& options =
        static_cast<const typename Kind::Options&>(optimizer.param_groups()[g].options());
    detail::for_each_option(options, [&](const char* name, const auto& value) {
      state.emplace(group_key(g, name), option_value(value));
    });
    state.emplace(group_key(g, "parameters"),
                  detail::text_tensor(group_names(optimizer, names, g)));
  }
  return state;
}

template <typename Kind>
const typename Kind::State* find_state(const Optimizer& optimizer, const at::Tensor& parameter) {
  const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
  if (found == optimizer.state().end()) return nullptr;
  const auto& state = *found->second;
  const auto* typed = dynamic_cast<const typename Kind::State*>(&state);
  TORCH_CHECK_NOT_IMPLEMENTED(typed, "cannot save the optimizer: it keeps state of type ",
                              c10::demangle(typeid(state).name()), " where its base class keeps ",
                              c10::demangle(typeid(typename Kind::State).name()),
                              "; give it state_dict() and load_state_dict() and save it by them");
  return typed;
}

template <typename State>
StateDict parameter_state(const State& from) {
  StateDict state;
  if constexpr (requires { from.step(); }) state.emplace("step", state_value(from.step()));
  detail::for_each_tensor(from, [&](const char* name, const at::Tensor& tensor, bool) {
    if (tensor.defined()) state.emplace(name, tensor.detach());
  });
  return state;
}

std::set<std::string> lines_of(const at::Tensor& bytes) {
  std::istringstream text(detail::tensor_text(bytes));
  std::set<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.insert(line);
  return lines;
}

void compare_names(const std::string& key, const at::Tensor& here, const at::Tensor& saved,
                   Differences& differences) {
  const auto names_here = lines_of(here);
  const auto names_saved = lines_of(saved);
  for (const auto& name : names_here) {
    if (!names_saved.contains(name)) differences.missing(key + "/" + name);
  }
  for (const auto& name : names_saved) {
    if (!names_here.contains(name)) differences.unexpected(key + "/" + name);
  }
}

/// Whether both are of one kind; if not, the kind says it all, since every other line differs too.
bool check_kind(const StateDict& here, const StateDict& saved, Differences& differences) {
  const auto kind = saved.find("kind");
  if (kind == saved.end()) {
    differences.missing("kind");
    return false;
  }
  const auto kind_here = detail::tensor_text(here.at("kind"));
  const auto kind_saved = detail::tensor_text(kind->second);
  if (kind_here == kind_saved) return true;
  differences.add("kind", kind_saved + " in the saved state, " + kind_here + " here");
  return false;
}

/// Compares the options and the names in every group.
void check_groups(const StateDict& here, const StateDict& saved, Differences& differences) {
  for (const auto& [key, value] : here) {
    const auto found = saved.find(key);
    if (found == saved.end()) {
      differences.missing(key);
    } else if (key.ends_with("/parameters")) {
      compare_names(key, value, found->second, differences);
    } else if (key != "kind") {
      detail::compare_tensor(key, value, found->second, differences);
    }
  }
  for (const auto& [key, value] : saved) {
    if (!key.starts_with("state/") && !here.contains(key)) differences.unexpected(key);
  }
}

/// Stands for state that is not there yet: of the parameter's shape, and of whatever floating dtype
/// was saved (a fused optimizer may keep fp32 state for a half-precision parameter).
at::Tensor not_yet(const at::Tensor& parameter, const at::Tensor* saved) {
  const bool floating = saved && at::isFloatingType(saved->scalar_type());
  return at::empty(parameter.sizes(),
                   at::TensorOptions(at::kMeta).dtype(floating ? saved->scalar_type()
                                                               : parameter.scalar_type()));
}

/// What `saved` must hold for one parameter, given the state that is `here` (or none yet).
template <typename State>
StateDict expected_state(const at::Tensor& parameter, const State* here, const StateDict& saved) {
  const State none;
  StateDict expected;
  if constexpr (requires { none.step(); }) expected.emplace("step", state_value(int64_t{0}));
  detail::for_each_tensor(
      here ? *here : none, [&](const char* name, const at::Tensor& live, bool required) {
        const auto found = saved.find(name);
        const bool is_saved = found != saved.end();
        if (!is_saved && !required) return;
        expected.emplace(
            name, live.defined() ? live : not_yet(parameter, is_saved ? &found->second : nullptr));
      });
  return expected;
}

template <typename Kind>
void check_parameters(const Optimizer& optimizer, const Parameters& parameters,
                      const StateDict& state, Differences& differences) {
  auto unknown = detail::state_below(state, "state/");
  for (const auto& [name, parameter] : parameters) {
    const auto saved = detail::state_below(state, "state/" + name + "/");
    const auto* here = find_state<Kind>(optimizer, parameter);
    for (const auto& [field, tensor] : saved) unknown.erase(name + "/" + field);
    // Adagrad makes its state with the optimizer and relies on it; the others make it lazily.
    const bool lazy = !std::is_same_v<typename Kind::State, torch::optim::AdagradParamState>;
    if (saved.empty() && lazy) continue;
    Differences found;
    detail::compare_states(expected_state(parameter, here, saved), saved, found);
    differences.append("state/" + name + "/", found);
  }
  for (const auto& [key, tensor] : unknown) differences.unexpected("state/" + key);
}

void load_value(double& to, const at::Tensor& from) { to = from.item().toDouble(); }
void load_value(bool& to, const at::Tensor& from) { to = from.item().toLong() != 0; }

template <typename Kind>
void apply_groups(Optimizer& optimizer, const StateDict& state) {
  for (size_t g = 0; g < optimizer.param_groups().size(); ++g) {
    auto& options = static_cast<typename Kind::Options&>(optimizer.param_groups()[g].options());
    detail::for_each_option(options, [&](const char* name, auto& value) {
      load_value(value, state.at(group_key(g, name)));
    });
  }
}

void load_tensor(at::Tensor& to, const at::Tensor& parameter, const StateDict& saved,
                 const char* name) {
  const auto found = saved.find(name);
  if (found == saved.end()) {
    to = at::Tensor();
    return;
  }
  if (!to.defined()) {
    to = at::empty_like(parameter, at::TensorOptions().dtype(found->second.scalar_type()));
  }
  to.copy_(found->second);
}

template <typename Kind>
void apply_parameter(Optimizer& optimizer, const at::Tensor& parameter, const StateDict& saved) {
  using State = typename Kind::State;
  void* const key = parameter.unsafeGetTensorImpl();
  if (saved.empty()) {
    optimizer.state().erase(key);
    return;
  }
  auto& slot = optimizer.state()[key];
  if (!slot) slot = std::make_unique<State>();
  auto& to = static_cast<State&>(*slot);
  if constexpr (requires { to.step(); }) to.step(state_int(saved, "step"));
  detail::for_each_tensor(to, [&](const char* name, at::Tensor& tensor, bool) {
    load_tensor(tensor, parameter, saved, name);
  });
}

}  // namespace

StateDict optimizer_state_dict(const Optimizer& optimizer, const torch::nn::Module& model) {
  return detail::visit_kind(optimizer, [&](const auto& kind) {
    using Kind = std::decay_t<decltype(kind)>;
    const auto names = names_in(model);
    auto state = group_state(optimizer, names, kind);
    for (const auto& [name, parameter] : parameters_of(optimizer, names)) {
      const auto* from = find_state<Kind>(optimizer, parameter);
      if (!from) continue;
      for (auto& [field, tensor] : parameter_state(*from)) {
        state.emplace("state/" + name + "/" + field, tensor);
      }
    }
    return state;
  });
}

void load_optimizer_state_dict(Optimizer& optimizer, const torch::nn::Module& model,
                               const StateDict& state) {
  Differences differences;
  detail::check_optimizer_state(optimizer, model, state, differences);
  detail::check_fits(differences, "the optimizer");
  detail::apply_optimizer_state(optimizer, model, state);
}

namespace detail {

void check_optimizer_state(const Optimizer& optimizer, const torch::nn::Module& model,
                           const StateDict& state, Differences& differences) {
  visit_kind(optimizer, [&](const auto& kind) {
    using Kind = std::decay_t<decltype(kind)>;
    const auto names = names_in(model);
    const auto here = group_state(optimizer, names, kind);
    if (!check_kind(here, state, differences)) return;
    check_groups(here, state, differences);
    check_parameters<Kind>(optimizer, parameters_of(optimizer, names), state, differences);
  });
}

void apply_optimizer_state(Optimizer& optimizer, const torch::nn::Module& model,
                           const StateDict& state) {
  const c10::NoGradGuard no_grad;
  visit_kind(optimizer, [&](const auto& kind) {
    using Kind = std::decay_t<decltype(kind)>;
    apply_groups<Kind>(optimizer, state);
    for (const auto& [name, parameter] : parameters_of(optimizer, names_in(model))) {
      apply_parameter<Kind>(optimizer, parameter,
                            detail::state_below(state, "state/" + name + "/"));
    }
  });
}

}  // namespace detail
}  // namespace torchlore
