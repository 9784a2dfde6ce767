#include "detached_input.hpp"

#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/variable.h>

#include <concepts>
#include <memory>

namespace torchlore::memory {

namespace ag = torch::autograd;

namespace {

/// A node of autograd's graph, held as this LibTorch holds them.
template <typename Node, typename... Args>
auto make_node(Args&&... args) {
  using Pointer = decltype(ag::Edge::function);
  if constexpr (std::same_as<Pointer, std::shared_ptr<ag::Node>>) {
    return std::make_shared<Node>(std::forward<Args>(args)...);
  } else {
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
  }
}

}  // namespace

at::Tensor detached_input(const at::Tensor& saved, bool requires_grad, bool leaf) {
  auto tensor = saved.variable_data();
  if (!requires_grad) return tensor;
  if (leaf) return tensor.set_requires_grad(true);
  auto nowhere = make_node<ag::Error>("the graph of a recomputation is never run", ag::edge_list());
  nowhere->add_input_metadata(tensor);
  ag::impl::set_gradient_edge(tensor, ag::Edge(std::move(nowhere), 0));
  return tensor;
}

}  // namespace torchlore::memory
