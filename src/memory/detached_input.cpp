#include "detached_input.hpp"

#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "../intercept/autograd_node.hpp"

namespace torchlore::memory {

namespace ag = torch::autograd;

at::Tensor detached_input(const at::Tensor& saved, bool requires_grad, bool leaf) {
  auto tensor = saved.variable_data();
  if (!requires_grad) return tensor;
  if (leaf) return tensor.set_requires_grad(true);
  auto nowhere =
      detail::make_node<ag::Error>("the graph of a recomputation is never run", ag::edge_list());
  nowhere->add_input_metadata(tensor);
  ag::impl::set_gradient_edge(tensor, ag::Edge(std::move(nowhere), 0));
  return tensor;
}

}  // namespace torchlore::memory
