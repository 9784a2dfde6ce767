#include "graph_use.hpp"

#include <c10/util/Exception.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <memory>
#include <unordered_set>
#include <vector>

namespace torchlore::detail {
namespace {

using torch::autograd::Node;

constexpr const char* kUsedUp =
    "the graph behind these losses was used up by add_clipped_sum; using its gradients twice would "
    "count each example twice: run the forward again";

/// Stands at a node that has served.
struct UsedUp : torch::autograd::FunctionPreHook {
  torch::autograd::variable_list operator()(const torch::autograd::variable_list&) override {
    TORCH_CHECK(false, kUsedUp);
  }
};

bool is_used_up(Node& node) {
  const auto& hooks = node.tensor_pre_hooks();
  return std::any_of(hooks.begin(), hooks.end(), [](const auto& hook) {
    return dynamic_cast<const UsedUp*>(hook.get()) != nullptr;
  });
}

/// The nodes behind the losses, without the parameters'.
std::vector<Node*> nodes_behind(const at::Tensor& losses) {
  std::vector<Node*> found;
  if (losses.grad_fn() == nullptr) return found;
  found.push_back(losses.grad_fn().get());
  std::unordered_set<const Node*> known{found[0]};
  for (size_t i = 0; i < found.size(); ++i) {
    for (const auto& edge : found[i]->next_edges()) {
      Node* next = edge.function.get();
      if (next == nullptr || dynamic_cast<torch::autograd::AccumulateGrad*>(next) != nullptr)
        continue;
      if (known.insert(next).second) found.push_back(next);
    }
  }
  return found;
}

}  // namespace

void check_not_used_up(const at::Tensor& losses) {
  for (auto* node : nodes_behind(losses)) TORCH_CHECK(!is_used_up(*node), kUsedUp);
}

bool has_hooks(const at::Tensor& parameter) {
  namespace impl = torch::autograd::impl;
  return !impl::hooks(parameter).empty() || impl::post_acc_grad_hooks(parameter) != nullptr;
}

void use_up(const at::Tensor& losses) {
  for (auto* node : nodes_behind(losses)) {
    node->release_variables();
    node->add_tensor_pre_hook(std::make_unique<UsedUp>());
  }
}

}  // namespace torchlore::detail
