#include "layer_rule.hpp"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include "../per_sample_math.hpp"

namespace torchlore::detail {

at::Tensor LayerRule::ghost_norms(size_t) {
  TORCH_INTERNAL_ASSERT(false, site_.node->name, " has no ghost norm");
}

at::Tensor LayerRule::norms(size_t slot) {
  const auto formed = instantiate(slot);
  return formed.squares.defined() ? formed.squares : squared_norms(formed.gradients);
}

at::Tensor LayerRule::weighted_sum(size_t slot, const at::Tensor& factors) {
  return detail::weighted_sum(instantiate(slot).gradients, factors);
}

void LayerRule::drop(const at::Tensor& dropped) {
  gradient_ = zeroed(gradient_, site_.layout, dropped);
}

at::Tensor zeroed(const at::Tensor& value, const ExampleLayout& layout, const at::Tensor& dropped) {
  std::vector<int64_t> sizes(static_cast<size_t>(value.dim()), 1);
  sizes[static_cast<size_t>(layout.dim)] = -1;
  return value.masked_fill(per_index(dropped, layout).view(sizes), 0);
}

std::unique_ptr<LayerRule> make_rule(const RuleSite& site) {
  for (const auto make : {make_linear_rule, make_convolution_rule, make_embedding_rule,
                          make_recurrent_rule, make_bilinear_rule, make_broadcast_rule}) {
    if (auto rule = make(site)) return rule;
  }
  return nullptr;
}

void refuse_mixing_op(const TapeNode& node) {
  if (node.op == TapeOp::batch_norm) {
    const auto* training = node.find_attribute("training");
    const bool uses_batch = training == nullptr || std::get<bool>(*training);
    TORCH_CHECK_NOT_IMPLEMENTED(!uses_batch, "node ", node.index, " (", node.name,
                                ") normalizes with statistics of the batch, which mixes the "
                                "examples: their gradients cannot "
                                "be told apart, and none of them is private; use GroupNorm or "
                                "LayerNorm instead, or put the "
                                "batch norm into eval mode");
  }
  if (node.op == TapeOp::embedding || node.op == TapeOp::embedding_bag) {
    const auto* by_frequency = node.find_attribute("scale_grad_by_freq");
    TORCH_CHECK_NOT_IMPLEMENTED(
        by_frequency == nullptr || !std::get<bool>(*by_frequency), "node ", node.index, " (",
        node.name,
        ") divides by how often an index occurs in the batch, which mixes the examples; make the "
        "embedding without scale_grad_by_freq");
  }
}

}  // namespace torchlore::detail
