#include "per_sample_pass.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "graph_use.hpp"
#include "per_sample_math.hpp"

namespace torchlore::detail {
namespace {

at::Tensor checked(at::Tensor losses) {
  TORCH_CHECK_VALUE(losses.defined(), "the losses are an undefined tensor");
  TORCH_CHECK_VALUE(losses.dim() == 1,
                    "the losses must be one per example, [B], but their shape is ", losses.sizes(),
                    "; make the loss with reduction none, and sum or average over all "
                    "other dimensions");
  TORCH_CHECK_VALUE(at::isFloatingType(losses.scalar_type()),
                    "the losses must be real numbers, but are ", losses.scalar_type());
  check_not_used_up(losses);
  return losses;
}

/// The value that a path's view, or the use itself, gives its examples with: copies for each example.
bool spreads(const TapeNode& node) {
  return node.name == "ExpandBackward0" || node.name == "RepeatBackward0";
}

int64_t tracked_input(const TapeNode& node) {
  const auto found = std::find_if(node.inputs.begin(), node.inputs.end(),
                                  [](const TapeInput& input) { return input.producer.node >= 0; });
  return found - node.inputs.begin();
}

std::vector<int64_t> sizes_of_input(const Tape& tape, const TapeUse& use) {
  const auto& from = tape.node(use.node).inputs[static_cast<size_t>(use.input)].producer;
  return tape.node(from.node).outputs[static_cast<size_t>(from.output)].sizes;
}

/// Where one parameter is used: directly, or where it is first copied for each example.
struct Place {
  size_t parameter = 0;
  TapeUse use = {};
  ParameterPath path = {};
};

[[noreturn]] void refuse_mixed(const TapeNode& node, const std::string& parameter) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "the examples cannot be told apart in the gradient by the output of node ", node.index,
      " (", node.name, "), which uses '", parameter,
      "': something between it and the losses mixes them, such as statistics of the batch; let "
      "each "
      "loss depend on its own example alone (GroupNorm instead of BatchNorm), or freeze the "
      "parameter");
}

[[noreturn]] void refuse_ambiguous(const TapeNode& node, const std::string& parameter) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "which dimension of the gradient by the output of node ",
                              node.index, " (", node.name, "), which uses '", parameter,
                              "', is the example cannot be told: too little of it is not 0; take "
                              "another batch for the first "
                              "call, or a batch whose size is not that of another dimension");
}

}  // namespace

Tape::NamedParameters trainable_parameters(const torch::nn::Module& model) {
  Tape::NamedParameters result;
  std::set<const void*> known;
  for (const auto& item : model.named_parameters()) {
    const auto& parameter = item.value();
    if (!parameter.defined() || !parameter.requires_grad()) continue;
    if (known.insert(parameter.unsafeGetTensorImpl()).second) {
      result.emplace_back(item.key(), parameter);
    }
  }
  TORCH_CHECK_VALUE(
      !result.empty(),
      "the model has no trainable parameter; unfreeze one, or pass the model that was "
      "called");
  return result;
}

PerSamplePass::PerSamplePass(at::Tensor losses, const Tape::NamedParameters& parameters,
                             const PerSampleOptions& options, PassPurpose purpose)
    : losses_(checked(std::move(losses))),
      options_(options),
      purpose_(purpose),
      tape_(Tape::of(losses_, parameters, {.keep = TapeKeep::parameter_uses})) {
  for (const auto& node : tape_.nodes()) refuse_mixing_op(node);
  check_leaves(parameters);
  if (examples() > 1) find_sites();
}

/// The states: parameters that the losses depend on.
void PerSamplePass::check_leaves(const Tape::NamedParameters& parameters) {
  std::map<const void*, const TapeParameter*> leaves;
  for (const auto& leaf : tape_.parameters()) {
    TORCH_CHECK_VALUE(!leaf.name.empty(), "the losses depend on a tensor of shape ",
                      leaf.tensor.sizes(),
                      " that requires a gradient and is no parameter of the model; "
                      "pass the model that holds it, or detach it");
    leaves.emplace(leaf.tensor.unsafeGetTensorImpl(), &leaf);
  }
  for (const auto& [name, parameter] : parameters) {
    const auto found = leaves.find(parameter.unsafeGetTensorImpl());
    if (found == leaves.end()) continue;
    states_.push_back({.name = name, .tensor = parameter, .leaf = found->second});
  }
}

void PerSamplePass::find_sites() {
  std::vector<Place> places;
  std::vector<TapeValue> values;
  for (size_t i = 0; i < states_.size(); ++i) {
    for (const auto& use : states_[i].leaf->uses) {
      auto path = path_to(tape_, use);
      for (const auto& view : path) {
        if (spreads(tape_.node(view.node))) values.push_back(view);
      }
      values.push_back({use.node});
      places.push_back({.parameter = i, .use = use, .path = std::move(path)});
    }
  }
  const auto layouts = find_layouts(tape_, losses_, values);
  std::map<int64_t, const std::vector<ExampleLayout>*> by_node;
  for (size_t i = 0; i < values.size(); ++i) by_node.emplace(values[i].node, &layouts[i]);

  std::map<int64_t, std::vector<Place>> at_nodes;
  for (auto& place : places) {
    for (size_t i = 0; i < place.path.size(); ++i) {
      const auto& view = tape_.node(place.path[i].node);
      if (!spreads(view) || by_node.at(view.index)->empty()) continue;
      place.use = {view.index, tracked_input(view)};
      place.path.resize(i);
      break;
    }
    auto& there = at_nodes[place.use.node];
    const bool is_new = std::none_of(there.begin(), there.end(), [&](const Place& other) {
      return other.use == place.use && other.parameter == place.parameter;
    });
    if (is_new) there.push_back(place);
  }
  for (const auto& [node, there] : at_nodes) {
    const auto& candidates = *by_node.at(node);
    if (candidates.empty()) refuse_mixed(tape_.node(node), states_[there[0].parameter].name);
    std::vector<std::vector<Place>> groups{there};
    for (size_t g = 0; g < groups.size(); ++g) {
      Site site{.rule_site = {.node = &tape_.node(node)}};
      bool is_known_path = true;
      for (const auto& place : groups[g]) {
        const auto& input = tape_.node(node).inputs[static_cast<size_t>(place.use.input)];
        site.rule_site.slots.push_back({input.name, sizes_of_input(tape_, place.use)});
        site.parameters.emplace_back(place.parameter, place.path);
        is_known_path = is_known_path && is_known(tape_, place.path);
      }
      for (const auto& layout : candidates) {
        if (!is_known_path) break;
        site.rule_site.layout = layout;
        auto rule = make_rule(site.rule_site);
        if (rule == nullptr) continue;
        if (site.rule != nullptr) {
          refuse_ambiguous(tape_.node(node), states_[there[0].parameter].name);
        }
        site.rule = std::move(rule);
      }
      if (site.rule != nullptr) {
        sites_.push_back(std::move(site));
      } else if (groups[g].size() > 1) {  // one by one
        for (const auto& place : std::vector<Place>(groups[g])) groups.push_back({place});
      } else {
        states_[groups[g][0].parameter].is_exact = true;
      }
    }
  }
  for (size_t s = 0; s < sites_.size(); ++s) {
    auto& parameters = sites_[s].parameters;
    for (size_t slot = 0; slot < parameters.size(); ++slot) {
      states_[parameters[slot].first].uses.push_back({s, slot, parameters[slot].second});
    }
  }
  for (auto& state : states_) {
    const bool keeps = state.uses.size() == 1 && keeps_norms(tape_, state.uses[0].path);
    state.is_summed = state.is_exact || !keeps || purpose_ == PassPurpose::gradients;
  }
}

void PerSamplePass::check_gradients() const {
  for (const auto& state : states_) {
    const auto& gradient = state.tensor.grad();
    TORCH_CHECK_VALUE(!gradient.defined() || gradient.layout() == at::kStrided, "the gradient of '",
                      state.name, "' is ", gradient.layout(),
                      ", to which no sum of examples can be added; set it to dense or undefined");
  }
}

void PerSamplePass::run() {
  const at::NoGradGuard no_grad;
  if (examples() == 1) {
    for (auto& state : states_) state.is_exact = state.is_summed = true;
  }
  if (examples() > 0) run_exact();
  const bool uses_up = purpose_ == PassPurpose::sum;
  std::vector<TapeValue> values;
  for (const auto& site : sites_) values.push_back({site.rule_site.node->index});
  const auto visit = [&](size_t place, const at::Tensor& gradient) {
    const at::NoGradGuard also_on_the_engines_thread;
    arrive(sites_[place], gradient);
  };
  if (examples() > 1) {
    tape_.visit_output_gradients(values, visit,
                                 {.keep_graph = !uses_up, .loss_gradient = at::ones_like(losses_)});
  }
  if (uses_up) use_up(losses_);
  for (auto& state : states_) {
    if (state.kept.defined() && !state.squares.defined()) state.squares = squared_norms(state.kept);
    if (!state.squares.defined()) {
      state.squares = at::zeros({examples()}, options());
    }
    if (purpose_ == PassPurpose::norms) state.kept.reset();
  }
}

/// One backward for each example, for the parameters that no rule has gradients of.
void PerSamplePass::run_exact() {
  std::vector<TapeValue> leaves;
  std::vector<State*> states;
  std::string names;
  for (auto& state : states_) {
    if (!state.is_exact) continue;
    leaves.push_back({state.leaf->node});
    states.push_back(&state);
    names += (names.empty() ? "'" : ", '") + state.name + "'";
  }
  if (leaves.empty()) return;
  if (examples() > 1) {
    TORCH_WARN_ONCE("no rule gives single examples' gradients by ", names,
                    "; one backward for each example is run for these, which is exact and slow");
  }
  for (int64_t example = 0; example < examples(); ++example) {
    auto root = at::zeros_like(losses_);
    root[example] = 1;
    const auto found = tape_.output_gradients(leaves, {.loss_gradient = root});
    for (size_t i = 0; i < found.size(); ++i) {
      if (!found[i].defined()) continue;
      if (!states[i]->kept.defined()) {
        auto sizes = found[i].sizes().vec();
        sizes.insert(sizes.begin(), examples());
        states[i]->kept = at::zeros(sizes, found[i].options());
      }
      states[i]->kept[example].copy_(found[i]);
    }
  }
  if (examples() == 1) return;
  for (const auto* state : states) {
    TORCH_CHECK(!state->kept.defined() || state->kept.isfinite().all().item<bool>(),
                "an example's gradient is not finite, and '", state->name,
                "' is used by an op without a rule, where it cannot be told apart from the others; "
                "leave such examples out of the batch, or freeze the parameter");
  }
}

void PerSamplePass::arrive(Site& site, const at::Tensor& gradient) {
  site.rule->take(gradient);
  for (size_t slot = 0; slot < site.parameters.size(); ++slot) arrive_at_slot(site, slot);
  if (site.is_needed_later) return;
  site.rule.reset();
  tape_.release(site.rule_site.node->index);
}

void PerSamplePass::arrive_at_slot(Site& site, size_t slot) {
  auto& state = states_[site.parameters[slot].first];
  if (state.is_exact) return;
  if (!state.is_summed) {
    measure(state, site, slot);
    return;
  }
  auto formed =
      back_through(tape_, site.parameters[slot].second, site.rule->instantiate(slot).gradients);
  if (!state.kept.defined()) {
    state.kept = std::move(formed);
  } else if (!state.is_kept_own) {
    state.kept = state.kept.add(formed);
    state.is_kept_own = true;
  } else {
    state.kept.add_(formed);
  }
}

void PerSamplePass::measure(State& state, Site& site, size_t slot) {
  auto& rule = *site.rule;
  const auto cost = rule.cost(slot);
  const auto& sizes = site.rule_site.slots[slot].sizes;
  const double elements = static_cast<double>(c10::multiply_integers(sizes) * examples());
  if (is_kept(cost, elements)) {
    auto formed = rule.instantiate(slot);
    state.kept = std::move(formed.gradients);
    state.squares = formed.squares.defined() ? formed.squares : squared_norms(state.kept);
    return;
  }
  const bool is_ghost =
      options_.mode == PerSampleMode::ghost
          ? std::isfinite(cost.ghost)
          : options_.mode != PerSampleMode::recomputed && cost.ghost < cost.instantiate;
  state.squares = is_ghost ? rule.ghost_norms(slot) : rule.norms(slot);
  site.is_needed_later = site.is_needed_later || purpose_ == PassPurpose::sum;
}

/// Whether the formed gradients stay until the sum. They take the place of a weight gradient, so that
/// only writing and reading them is extra; a ghost norm that costs less than that is better.
bool PerSamplePass::is_kept(const RuleCost& cost, double elements) {
  if (purpose_ != PassPurpose::sum) return cost.is_small;
  if (cost.is_small || options_.mode == PerSampleMode::instantiated) return true;
  if (options_.mode != PerSampleMode::automatic) return false;
  const double bytes = 4 * elements;
  if (cost.ghost < elements || kept_bytes_ + bytes > static_cast<double>(options_.keep.count())) {
    return false;
  }
  kept_bytes_ += bytes;
  return true;
}

at::Tensor PerSamplePass::gradients(size_t i) const {
  const auto& state = states_[i];
  auto sizes = state.tensor.sizes().vec();
  sizes.insert(sizes.begin(), examples());
  if (!state.kept.defined()) return at::zeros(sizes, state.tensor.options().requires_grad(false));
  return state.kept.to(state.tensor.scalar_type()).reshape(sizes);
}

void PerSamplePass::drop(const at::Tensor& dropped) {
  for (auto& state : states_) {
    if (state.kept.defined()) state.kept = without_examples(state.kept, dropped);
  }
  for (auto& site : sites_) {
    if (site.rule != nullptr && site.is_needed_later) site.rule->drop(dropped);
  }
}

at::Tensor PerSamplePass::weighted_sum(size_t i, const at::Tensor& factors) {
  const at::NoGradGuard no_grad;
  auto& state = states_[i];
  at::Tensor sum;
  if (state.kept.defined()) {
    sum = detail::weighted_sum(state.kept, factors);
    state.kept.reset();
  } else if (!state.uses.empty() && sites_[state.uses[0].site].is_needed_later) {
    const auto& use = state.uses[0];
    sum = sites_[use.site].rule->weighted_sum(use.slot, factors);
  } else {
    return {};  // no gradient arrived
  }
  if (!state.is_summed) {
    sum = back_through(tape_, state.uses[0].path, sum.unsqueeze(0)).squeeze(0);
  }
  return sum.to(state.tensor.scalar_type()).reshape(state.tensor.sizes()).contiguous();
}

}  // namespace torchlore::detail
