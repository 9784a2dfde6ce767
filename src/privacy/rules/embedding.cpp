#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <utility>

#include "../per_sample_math.hpp"
#include "cpu_kernels.hpp"
#include "layer_rule.hpp"

// Rows of a table, also summed in bags: a list of rows looked up, each with its example and the gradient
// that it is given. Rows that an example looks up several times are summed before they are squared.
namespace torchlore::detail {
namespace {

class EmbeddingRule : public LayerRule {
 public:
  explicit EmbeddingRule(RuleSite site) : LayerRule(std::move(site)) {
    const auto& node = *site_.node;
    indices_ = node.saved_tensor("indices").reshape({-1}).to(at::kLong);
    if (node.op == TapeOp::embedding_bag) {
      bag_ = bags();
      weights_ = node.saved_tensor("per_sample_weights");
      if (node.attribute<int64_t>("mode") == 1) {
        bag_size_ = node.saved_tensor("bag_size");
      }
    }
  }

  void take(const at::Tensor& gradient) override {
    const int64_t columns = gradient.size(-1);
    auto rows = gradient.reshape({-1, columns});
    layout_ = flattened(gradient.sizes(), site_.layout, 1);
    const auto examples = at::arange(layout_.examples, indices_.options());
    auto example = per_index(examples, layout_);
    if (bag_.defined()) {
      if (bag_size_.defined()) rows = rows / bag_size_.clamp_min(1).unsqueeze(1).to(rows.dtype());
      rows = rows.index_select(0, bag_);
      example = example.index_select(0, bag_);
      if (weights_.defined()) rows = rows * weights_.view({-1, 1});
    }
    example_ = example;
    gradient_ = rows;
    const auto padding = site_.node->attribute<int64_t>("padding_idx");
    if (padding < 0) return;
    gradient_ = gradient_.masked_fill(indices_.eq(padding).unsqueeze(1), 0);
  }

  RuleCost cost(size_t) const override {
    const auto& table = site_.slots[0].sizes;
    const auto looked_up = static_cast<double>(indices_.numel() * table[1]);
    const auto examples = static_cast<double>(site_.layout.examples);
    return {.instantiate = examples * static_cast<double>(table[0] * table[1]) + looked_up,
            .ghost = 4 * looked_up,
            .is_small = false};
  }

  InstantiatedGradients instantiate(size_t) override {
    const auto& table = site_.slots[0].sizes;
    const int64_t examples = site_.layout.examples;
    auto gradients = at::zeros({examples * table[0], table[1]}, gradient_.options());
    gradients.index_add_(0, keys(), gradient_);
    return {.gradients = gradients.view({examples, table[0], table[1]})};
  }

  at::Tensor ghost_norms(size_t) override {
    if (!bag_.defined()) {
      if (auto squares = embedding_norms_by_kernel(indices_, gradient_, layout_)) return *squares;
    }
    const auto dtype = accumulation_type(gradient_.scalar_type());
    const auto [found, place, counts] = at::_unique2(keys(), /*sorted=*/true, /*inverse=*/true);
    auto sums = at::zeros({found.numel(), gradient_.size(1)}, gradient_.options().dtype(dtype));
    sums.index_add_(0, place, gradient_.to(dtype));
    auto squares = at::zeros({site_.layout.examples}, sums.options().dtype(at::kDouble));
    const auto example = found.div(site_.slots[0].sizes[0], "floor");
    return squares.index_add_(0, example, sums.square().sum(1).to(at::kDouble));
  }

  at::Tensor norms(size_t slot) override { return ghost_norms(slot); }

  at::Tensor weighted_sum(size_t, const at::Tensor& factors) override {
    const auto& table = site_.slots[0].sizes;
    const auto dtype = accumulation_type(gradient_.scalar_type());
    auto sum = at::zeros(table, gradient_.options().dtype(dtype));
    if (!bag_.defined() && add_embedding_by_kernel(indices_, gradient_, layout_, factors, sum)) {
      return sum;
    }
    const auto rows = factors.to(dtype).index_select(0, example_).unsqueeze(1);
    return sum.index_add_(0, indices_, gradient_.to(dtype) * rows);
  }

  void drop(const at::Tensor& dropped) override {
    gradient_ = gradient_.masked_fill(dropped.index_select(0, example_).unsqueeze(1), 0);
  }

 private:
  /// The bag of each index.
  at::Tensor bags() const {
    const auto saved = site_.node->saved_tensor("offset2bag");
    if (saved.defined() && saved.numel() == indices_.numel()) return saved.to(at::kLong);
    const auto offsets =
        site_.node->saved_tensor("offsets").to(at::kLong);  // a fast path kept none
    auto starts = at::zeros({indices_.numel() + 1}, indices_.options());
    starts.index_add_(0, offsets, at::ones_like(offsets));
    return starts.narrow(0, 0, indices_.numel()).cumsum(0).sub(1);
  }

  /// example · rows of the table + index.
  at::Tensor keys() const { return example_ * site_.slots[0].sizes[0] + indices_; }

  ExampleLayout layout_;  ///< of the rows, where there are no bags
  at::Tensor indices_, bag_, weights_, bag_size_, example_;
};

}  // namespace

std::unique_ptr<LayerRule> make_embedding_rule(const RuleSite& site) {
  const auto& node = *site.node;
  const bool is_bag = node.op == TapeOp::embedding_bag;
  if (node.op != TapeOp::embedding && !is_bag) return nullptr;
  if (site.slots.size() != 1 || site.slots[0].input != "weight") return nullptr;
  const auto columns = static_cast<int64_t>(node.outputs[0].sizes.size()) - 1;
  if (site.layout.dim >= columns) return nullptr;
  if (is_bag && node.attribute<int64_t>("mode") == 2)
    return nullptr;  // maxima: each column its row
  return std::make_unique<EmbeddingRule>(site);
}

}  // namespace torchlore::detail
