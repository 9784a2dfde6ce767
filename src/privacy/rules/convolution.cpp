#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <utility>

#include "../per_sample_math.hpp"
#include "cpu_kernels.hpp"
#include "layer_rule.hpp"

// Convolutions of every kind: LibTorch's own weight gradient, of one example's inputs at a time. What pads
// by other values than zeros has done so before the op, in its input.
namespace torchlore::detail {
namespace {

class ConvolutionRule : public LayerRule {
 public:
  explicit ConvolutionRule(RuleSite site) : LayerRule(std::move(site)) {
    const auto& node = *site_.node;
    input_ = node.saved_tensor(node.inputs[0].name);
    for (const auto& slot : site_.slots) {
      if (slot.input != "weight") continue;
      weight_ = at::empty(slot.sizes, input_.options());  // only its shape is used
    }
  }

  RuleCost cost(size_t slot) const override {
    if (is_bias(slot)) return {};
    double products = static_cast<double>(weight_.numel());
    const auto& output = transposed() ? input_.sizes().vec() : site_.node->outputs[0].sizes;
    products *= static_cast<double>(output[0]);
    for (size_t dim = 2; dim < output.size(); ++dim) products *= static_cast<double>(output[dim]);
    return {.instantiate = products, .is_small = false};
  }

  InstantiatedGradients instantiate(size_t slot) override {
    if (!is_bias(slot)) {
      if (const auto formed = by_kernel(true)) return *formed;
    }
    const auto g = example_first(gradient_, site_.layout);  // [B, N/B, C, …]
    if (is_bias(slot)) {
      const auto wide = g.to(accumulation_type(g.scalar_type()));
      return {.gradients = wide.flatten(3).sum({1, 3})};
    }
    const auto x = example_first(input_, site_.layout);
    std::vector<int64_t> sizes{g.size(0)};
    sizes.insert(sizes.end(), weight_.sizes().begin(), weight_.sizes().end());
    auto gradients = at::empty(sizes, weight_.options());
    for (int64_t e = 0; e < g.size(0); ++e) {
      gradients.select(0, e).copy_(weight_gradient(g.select(0, e), x.select(0, e)));
    }
    return {.gradients = gradients};
  }

  at::Tensor norms(size_t slot) override {
    if (is_bias(slot)) return LayerRule::norms(slot);
    if (const auto formed = by_kernel(false)) return formed->squares;
    const auto g = example_first(gradient_, site_.layout);
    const auto x = example_first(input_, site_.layout);
    std::vector<at::Tensor> squares;
    for (int64_t e = 0; e < g.size(0); ++e) {
      squares.push_back(
          squared_norms(weight_gradient(g.select(0, e), x.select(0, e)).unsqueeze(0)));
    }
    return at::cat(squares);
  }

  at::Tensor weighted_sum(size_t slot, const at::Tensor& factors) override {
    if (is_bias(slot)) return detail::weighted_sum(instantiate(slot).gradients, factors);
    std::vector<int64_t> sizes(static_cast<size_t>(gradient_.dim()), 1);
    sizes[0] = -1;
    const auto rows = per_index(factors, site_.layout).to(gradient_.scalar_type()).view(sizes);
    return gradient_.numel() <= input_.numel() ? weight_gradient(gradient_ * rows, input_)
                                               : weight_gradient(gradient_, input_ * rows);
  }

  void drop(const at::Tensor& dropped) override {
    LayerRule::drop(dropped);
    if (input_.defined()) input_ = zeroed(input_, site_.layout, dropped);
  }

 private:
  bool is_bias(size_t slot) const { return site_.slots[slot].input == "bias"; }

  std::optional<InstantiatedGradients> by_kernel(bool is_kept) const {
    return convolution_by_kernel(*site_.node, weight_.sizes(), site_.layout, gradient_, input_,
                                 is_kept);
  }

  bool transposed() const {
    const auto* value = site_.node->find_attribute("transposed");
    return value != nullptr && std::get<bool>(*value);
  }

  at::Tensor weight_gradient(const at::Tensor& gradient, const at::Tensor& input) const {
    const auto& node = *site_.node;
    using Ints = std::vector<int64_t>;
    return std::get<1>(at::convolution_backward(
        gradient, input, weight_, std::nullopt, node.attribute<Ints>("stride"),
        node.attribute<Ints>("padding"), node.attribute<Ints>("dilation"), transposed(),
        node.attribute<Ints>("output_padding"), node.attribute<int64_t>("groups"),
        {false, true, false}));
  }

  at::Tensor input_;
  at::Tensor weight_;
};

}  // namespace

std::unique_ptr<LayerRule> make_convolution_rule(const RuleSite& site) {
  // The other convolutions of the table are kernels that no dispatcher of today chooses; they say less.
  if (site.node->name != "ConvolutionBackward0" || site.layout.dim != 0) return nullptr;
  for (const auto& slot : site.slots) {
    if (slot.input != "weight" && slot.input != "bias") return nullptr;
  }
  return std::make_unique<ConvolutionRule>(site);
}

}  // namespace torchlore::detail
