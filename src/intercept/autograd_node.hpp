#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>

#include <concepts>
#include <memory>
#include <utility>

/// How LibTorch holds autograd's nodes changed after 2.9 (from std::shared_ptr to
/// c10::intrusive_ptr): one spelling for both.
namespace torchlore::detail {

/// Holds a node.
using NodePtr = decltype(std::declval<torch::autograd::Node&>().getptr());

/// The type that refers to a node without holding it.
std::weak_ptr<torch::autograd::Node> weak_type(const std::shared_ptr<torch::autograd::Node>&);
c10::weak_intrusive_ptr<torch::autograd::Node> weak_type(
    const c10::intrusive_ptr<torch::autograd::Node>&);
using WeakNodePtr = decltype(weak_type(std::declval<NodePtr>()));

/// Makes a node.
template <typename Node, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::same_as<NodePtr, std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<Node>(std::forward<Args>(args)...);
  } else {
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
  }
}

}  // namespace torchlore::detail
