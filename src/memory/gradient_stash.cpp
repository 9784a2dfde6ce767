#include "gradient_stash.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>

namespace torchlore::memory {
namespace {

using torch::autograd::Node;

/// The tensors that backward from `root` accumulates gradients in.
std::vector<at::Tensor> leaves_of(Node* root) {
  std::vector<at::Tensor> leaves;
  std::vector<Node*> waiting{root};
  std::unordered_set<const Node*> seen{root};
  while (!waiting.empty()) {
    auto* node = waiting.back();
    waiting.pop_back();
    if (auto* leaf = dynamic_cast<torch::autograd::AccumulateGrad*>(node)) {
      leaves.push_back(leaf->variable);
      continue;
    }
    for (const auto& edge : node->next_edges()) {
      auto* next = edge.function.get();
      if (next != nullptr && seen.insert(next).second) waiting.push_back(next);
    }
  }
  return leaves;
}

}  // namespace

void GradientStash::before_backward(const at::Tensor& loss) {
  const auto root = torch::autograd::impl::gradient_edge(loss).function;
  if (!root) return;
  for (auto& leaf : leaves_of(root.get())) {
    if (!seen_.insert(leaf.unsafeGetTensorImpl()).second) continue;
    auto& gradient = leaf.mutable_grad();
    old_.emplace_back(leaf, gradient);
    gradient = at::Tensor();
  }
}

void GradientStash::undo() {
  for (const auto& [leaf, gradient] : old_) leaf.mutable_grad() = gradient;
  old_.clear();
  seen_.clear();
}

void GradientStash::scale_(double factor) const {
  if (factor == 1) return;
  const at::NoGradGuard no_grad;
  for (const auto& [leaf, old] : old_) {
    if (leaf.grad().defined()) leaf.grad().mul_(factor);
  }
}

void GradientStash::join() {
  const at::NoGradGuard no_grad;
  for (const auto& [leaf, old] : old_) {
    auto& gradient = leaf.mutable_grad();
    if (!gradient.defined()) {
      gradient = old;
    } else if (old.defined() && old.is_sparse() && !gradient.is_sparse()) {
      gradient = gradient + old;  // as autograd accumulates: the dense one takes the sparse one in
    } else if (old.defined()) {
      old.add_(gradient);
      gradient = old;
    }
  }
  old_.clear();
  seen_.clear();
}

}  // namespace torchlore::memory
