#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "parameter_path.hpp"
#include "rules/layer_rule.hpp"

/// Where a graph's parameters are used, and by which rule each use gets gradients of single examples.
namespace torchlore::detail {

/// One op with a rule.
struct ExampleSite {
  RuleSite rule_site = {};
  /// Per slot: which of the parameters asked for it is, and the way to it.
  std::vector<std::pair<size_t, ParameterPath>> parameters = {};
  std::unique_ptr<LayerRule> rule = nullptr;
};

/// All of them.
struct ExampleSites {
  std::vector<ExampleSite> sites = {};
  /// For each parameter: whether it has a use without a rule, so that only one backward for each example
  /// is exact.
  std::vector<bool> is_exact = {};
};

/// Finds them. A parameter that is first computed with (a weight norm, a product of two parameters) is used
/// by no example there, and needs exact passes.
/// @param losses at least two examples; the tape's loss.
/// @throws c10::NotImplementedError where examples are mixed, or cannot be told apart.
ExampleSites find_sites(const Tape& tape, const at::Tensor& losses,
                        const std::vector<const TapeParameter*>& parameters);

}  // namespace torchlore::detail
