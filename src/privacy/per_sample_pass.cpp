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
    TORCH_CHECK_NOT_IMPLEMENTED(!has_hooks(parameter), "parameter '", name,
                                "' has a hook, which would not see single examples' gradients; "
                                "remove it, and change the gradient after the clipped sum");
    states_.push_back({.name = name, .tensor = parameter, .leaf = found->second});
  }
}

void PerSamplePass::find_sites() {
  std::vector<const TapeParameter*> leaves;
  for (const auto& state : states_) leaves.push_back(state.leaf);
  auto found = detail::find_sites(tape_, losses_, leaves);
  for (size_t s = 0; s < found.sites.size(); ++s) {
    const auto& parameters = found.sites[s].parameters;
    for (size_t slot = 0; slot < parameters.size(); ++slot) {
      states_[parameters[slot].first].uses.push_back({s, slot});
    }
    sites_.push_back({.at = std::move(found.sites[s])});
  }
  for (size_t i = 0; i < states_.size(); ++i) {
    auto& state = states_[i];
    state.is_exact = found.is_exact[i];
    const bool keeps = state.uses.size() == 1 && keeps_norms(tape_, path_of(state.uses[0]));
    state.is_summed = state.is_exact || !keeps || purpose_ == PassPurpose::gradients;
  }
}

const ParameterPath& PerSamplePass::path_of(const Use& use) const {
  return sites_[use.site].at.parameters[use.slot].second;
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
  if (examples() > 1) run_rules();
  if (purpose_ == PassPurpose::sum) use_up(losses_);
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

/// One backward, in which each rule takes its gradient as soon as it is there.
void PerSamplePass::run_rules() {
  std::vector<TapeValue> values;
  std::vector<std::pair<Site*, size_t>> takers;
  for (auto& site : sites_) {
    site.outputs.resize(static_cast<size_t>(site.at.rule->output_count()));
    for (size_t output = 0; output < site.outputs.size(); ++output) {
      values.push_back({site.at.rule_site.node->index, static_cast<int64_t>(output)});
      takers.emplace_back(&site, output);
    }
  }
  const auto visit = [&](size_t place, const at::Tensor& gradient) {
    const at::NoGradGuard also_on_the_engines_thread;
    auto& [site, output] = takers[place];
    if (site->outputs.size() > 1) {
      site->outputs[output] = gradient;
      return;
    }
    site->at.rule->take(gradient);
    measure_slots(*site);
  };
  tape_.visit_output_gradients(
      values, visit,
      {.keep_graph = purpose_ != PassPurpose::sum, .loss_gradient = at::ones_like(losses_)});
  for (auto& site : sites_) {
    if (site.outputs.size() == 1) continue;
    site.at.rule->take_outputs(std::exchange(site.outputs, {}));
    measure_slots(site);
  }
}

void PerSamplePass::measure_slots(Site& site) {
  for (size_t slot = 0; slot < site.at.parameters.size(); ++slot) arrive_at_slot(site, slot);
  if (site.sums_left == 0) let_go(site);
}

void PerSamplePass::let_go(Site& site) {
  site.at.rule.reset();
  tape_.release(site.at.rule_site.node->index);
}

void PerSamplePass::arrive_at_slot(Site& site, size_t slot) {
  const auto& [parameter, path] = site.at.parameters[slot];
  auto& state = states_[parameter];
  if (state.is_exact) return;
  if (!state.is_summed) {
    measure(state, site, slot);
    return;
  }
  auto formed = back_through(tape_, path, site.at.rule->instantiate(slot).gradients);
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
  auto& rule = *site.at.rule;
  const auto cost = rule.cost(slot);
  const auto& sizes = site.at.rule_site.slots[slot].sizes;
  const auto elements = static_cast<double>(c10::multiply_integers(sizes) * examples());
  if (is_to_be_kept(cost, elements)) {
    auto formed = rule.instantiate(slot);
    state.kept = std::move(formed.gradients);
    state.squares = formed.squares.defined() ? formed.squares : squared_norms(state.kept);
    return;
  }
  const bool is_cheaper = std::isfinite(cost.ghost) &&
                          (options_.mode == PerSampleMode::ghost || cost.ghost < cost.instantiate);
  const bool is_ghost = is_cheaper && options_.mode != PerSampleMode::recomputed &&
                        options_.mode != PerSampleMode::instantiated;
  state.squares = is_ghost ? rule.ghost_norms(slot) : rule.norms(slot);
  if (purpose_ == PassPurpose::sum) ++site.sums_left;
}

/// Whether the formed gradients stay until the sum. They take the place of a weight gradient, so that
/// only writing and reading them is extra; a ghost norm that costs less than that is better.
bool PerSamplePass::is_to_be_kept(const RuleCost& cost, double elements) {
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
    if (site.sums_left > 0) site.at.rule->drop(dropped);
  }
}

at::Tensor PerSamplePass::weighted_sum(size_t i, const at::Tensor& factors) {
  const at::NoGradGuard no_grad;
  auto& state = states_[i];
  at::Tensor sum;
  if (state.kept.defined()) {
    sum = detail::weighted_sum(state.kept, factors);
    state.kept.reset();
  } else if (!state.uses.empty() && sites_[state.uses[0].site].sums_left > 0) {
    const auto& use = state.uses[0];
    auto& site = sites_[use.site];
    sum = site.at.rule->weighted_sum(use.slot, factors);
    if (--site.sums_left == 0) let_go(site);
  } else {
    return {};  // no gradient arrived
  }
  if (!state.is_summed) {
    sum = back_through(tape_, path_of(state.uses[0]), sum.unsqueeze(0)).squeeze(0);
  }
  return sum.to(state.tensor.scalar_type()).reshape(state.tensor.sizes()).contiguous();
}

}  // namespace torchlore::detail
