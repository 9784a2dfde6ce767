#include "torchlore/core/parameters.hpp"

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <unordered_set>

namespace torchlore {
namespace {

/// A module lists a tied parameter once per name; a norm must count it once.
std::vector<at::Tensor> distinct_parameters(const torch::nn::Module& module) {
  auto all = module.parameters();
  std::unordered_set<const void*> seen;
  std::erase_if(all,
                [&](const at::Tensor& t) { return !seen.insert(t.unsafeGetTensorImpl()).second; });
  return all;
}

}  // namespace

ParameterView::ParameterView(const torch::nn::Module& module)
    : ParameterView(distinct_parameters(module)) {}

ParameterView::ParameterView(const torch::optim::OptimizerParamGroup& group)
    : groups_{group.params()} {}

ParameterView::ParameterView(const torch::optim::Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups()) groups_.emplace_back(group.params());
}

size_t ParameterView::size() const {
  size_t count = 0;
  for (const auto& group : groups_) count += group.size();
  return count;
}

std::vector<at::Tensor> gradients(const ParameterView& parameters) {
  TORCH_CHECK_VALUE(!parameters.empty(),
                    "got an empty list of parameters; pass model->parameters(), the model or its "
                    "optimizer");
  std::vector<at::Tensor> result;
  result.reserve(parameters.size());
  parameters.for_each([&](const at::Tensor& parameter) {
    if (parameter.grad().defined()) result.push_back(parameter.grad());
  });
  return result;
}

std::vector<at::Tensor> parameters_named(const torch::nn::Module& module,
                                         const std::vector<std::string>& names) {
  const auto all = module.named_parameters();
  std::vector<at::Tensor> result;
  for (const auto& name : names) {
    const auto before = result.size();
    for (const auto& item : all) {
      if (item.key() == name || item.key().starts_with(name + ".")) result.push_back(item.value());
    }
    if (result.size() > before) continue;
    std::string known;
    for (const auto& item : all) known += (known.empty() ? "" : ", ") + item.key();
    TORCH_CHECK_VALUE(false, "no parameter of the module is '", name,
                      "' or lies in a submodule of that name; it has: ", known);
  }
  return result;
}

}  // namespace torchlore
