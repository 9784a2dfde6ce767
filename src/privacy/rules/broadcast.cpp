#include <ATen/ExpandUtils.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/accumulate.h>

#include <functional>
#include <optional>
#include <utility>

#include "../per_sample_math.hpp"
#include "cpu_kernels.hpp"
#include "layer_rule.hpp"

// Parameters that are spread over the op's output, each element to many places, where they are added, or
// multiplied by something: the gradient by an element is the sum of gradient × something over its places.
// Biases, norms, PReLU, arithmetic with a parameter, and expand and repeat themselves.
namespace torchlore::detail {
namespace {

/// How one slot is spread.
struct Spread {
  std::vector<int64_t> sizes = {};  // the slot's, with as many dimensions as the output
  std::function<at::Tensor()> times =
      {};  // what it is multiplied by, in the output's shape; empty: 1
  double factor = 1;
};

double number(const TapeNode& node, std::string_view name) {
  const auto* value = node.find_attribute(name);
  if (value == nullptr) return 1;
  if (const auto* whole = std::get_if<int64_t>(value)) return static_cast<double>(*whole);
  return std::get<double>(*value);
}

size_t rank(const TapeNode& node) { return node.outputs[0].sizes.size(); }

/// Sizes to the right, as broadcasting aligns them.
std::vector<int64_t> aligned(const std::vector<int64_t>& sizes, size_t rank) {
  std::vector<int64_t> result(rank - std::min(rank, sizes.size()), 1);
  result.insert(result.end(), sizes.begin(), sizes.end());
  return result;
}

/// [C] as [1, C, 1, …].
std::vector<int64_t> per_channel(const RuleSlot& slot, size_t rank) {
  std::vector<int64_t> result(rank, 1);
  result[1] = slot.sizes[0];
  return result;
}

/// The normalized input of a norm, in the accumulation type.
at::Tensor normalized(const TapeNode& node) {
  auto x = node.saved_tensor("input");
  const auto dtype = accumulation_type(x.scalar_type());
  x = x.to(dtype);
  const auto saved = [&](const char* name) { return node.saved_tensor(name).to(dtype); };
  if (node.op == TapeOp::rms_norm) return x * saved("rstd");
  if (node.op == TapeOp::layer_norm) return (x - saved("mean")) * saved("rstd");
  if (node.op == TapeOp::group_norm) {
    const auto mean = saved("mean"), rstd = saved("rstd");  // [N, groups]
    const auto grouped = x.reshape({mean.size(0), mean.size(1), -1});
    return ((grouped - mean.unsqueeze(2)) * rstd.unsqueeze(2)).view(x.sizes());
  }
  std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);  // batch norm in eval mode
  shape[1] = x.size(1);
  const auto rstd = (saved("running_var") + number(node, "eps")).rsqrt();
  return (x - saved("running_mean").view(shape)) * rstd.view(shape);
}

std::optional<Spread> norm_spread(const TapeNode& node, const RuleSlot& slot) {
  if (slot.input != "weight" && slot.input != "bias") return std::nullopt;
  const bool is_last = node.op == TapeOp::layer_norm || node.op == TapeOp::rms_norm;
  Spread spread{.sizes = is_last ? aligned(slot.sizes, rank(node)) : per_channel(slot, rank(node))};
  if (slot.input == "weight") spread.times = [&node] { return normalized(node); };
  return spread;
}

std::optional<Spread> arithmetic_spread(const TapeNode& node, const RuleSlot& slot) {
  const auto sizes = aligned(slot.sizes, rank(node));
  const bool is_other = slot.input == "other";
  if (node.name == "AddBackward0") {
    return Spread{.sizes = sizes, .factor = is_other ? number(node, "alpha") : 1};
  }
  if (node.name == "SubBackward0") {
    return Spread{.sizes = sizes, .factor = is_other ? -number(node, "alpha") : 1};
  }
  const auto other = node.saved_tensor("other"), self = node.saved_tensor("self");
  if (node.name == "MulBackward0") {
    const auto times = is_other ? self : other;
    if (!times.defined()) return std::nullopt;
    return Spread{.sizes = sizes, .times = [times] { return times; }};
  }
  if (node.name == "DivBackward0" && other.defined()) {
    if (!is_other) return Spread{.sizes = sizes, .times = [other] { return other.reciprocal(); }};
    if (!self.defined()) return std::nullopt;
    return Spread{.sizes = sizes, .times = [self, other] { return -self / other.square(); }};
  }
  return std::nullopt;
}

std::optional<Spread> spread_of(const TapeNode& node, const RuleSlot& slot) {
  switch (node.op) {
    case TapeOp::addmm:
    case TapeOp::baddbmm:
    case TapeOp::addmv:
      if (slot.input != "self") return std::nullopt;
      return Spread{.sizes = aligned(slot.sizes, rank(node)), .factor = number(node, "beta")};
    case TapeOp::linear:
      if (slot.input != "bias") return std::nullopt;
      return Spread{.sizes = aligned(slot.sizes, rank(node))};
    case TapeOp::layer_norm:
    case TapeOp::rms_norm:
    case TapeOp::group_norm:
    case TapeOp::batch_norm:
      return norm_spread(node, slot);
    case TapeOp::prelu: {
      const auto self = node.saved_tensor("self");
      if (slot.input != "weight" || !self.defined()) return std::nullopt;
      return Spread{.sizes = aligned(slot.sizes, rank(node)),
                    .times = [self] { return self.clamp_max(0); }};
    }
    case TapeOp::elementwise:
      return arithmetic_spread(node, slot);
    case TapeOp::view:
      if (node.name != "ExpandBackward0") return std::nullopt;
      return Spread{.sizes = aligned(slot.sizes, rank(node))};
    default:
      return std::nullopt;
  }
}

class BroadcastRule : public LayerRule {
 public:
  BroadcastRule(RuleSite site, std::vector<Spread> spreads)
      : LayerRule(std::move(site)), spreads_(std::move(spreads)) {}

  void take(const at::Tensor& gradient) override {
    LayerRule::take(gradient);
    norm_.clear();
  }

  RuleCost cost(size_t) const override { return {}; }

  InstantiatedGradients instantiate(size_t slot) override {
    if (auto formed = by_kernel(slot)) return *std::move(formed);
    const auto& spread = spreads_[slot];
    auto each = gradient_.to(accumulation_type(gradient_.scalar_type()));
    if (spread.times) each = each * spread.times();
    auto sizes = spread.sizes;
    sizes.insert(sizes.begin(), site_.layout.examples);
    auto gradients = at::sum_to(example_first(each, site_.layout), sizes);
    if (spread.factor != 1) gradients = gradients * spread.factor;
    sizes = site_.slots[slot].sizes;
    sizes.insert(sizes.begin(), site_.layout.examples);
    return {.gradients = gradients.reshape(sizes)};
  }

  void drop(const at::Tensor& dropped) override {
    LayerRule::drop(dropped);
    norm_.clear();
  }

 private:
  std::optional<InstantiatedGradients> by_kernel(size_t slot) {
    auto formed = is_norm() ? norm_by_kernel_once(slot) : sum_by_kernel(slot);
    if (!formed) return formed;
    std::vector<int64_t> sizes{site_.layout.examples};
    const auto& of_slot = site_.slots[slot].sizes;
    sizes.insert(sizes.end(), of_slot.begin(), of_slot.end());
    formed->gradients = formed->gradients.view(sizes);
    return formed;
  }

  bool is_norm() const {
    const auto op = site_.node->op;
    return op == TapeOp::layer_norm || op == TapeOp::rms_norm || op == TapeOp::group_norm;
  }

  /// Weight and bias come from one look at the gradient.
  std::optional<InstantiatedGradients> norm_by_kernel_once(size_t slot) {
    if (norm_.empty()) {
      auto formed = norm_by_kernel(*site_.node, site_.layout, gradient_);
      if (!formed) return std::nullopt;
      norm_ = *std::move(formed);
    }
    return norm_[site_.slots[slot].input == "weight" ? 0 : 1];
  }

  /// A bias: one row, added to all.
  std::optional<InstantiatedGradients> sum_by_kernel(size_t slot) {
    const auto& spread = spreads_[slot];
    const auto last = gradient_.dim() - 1;
    if (spread.times || spread.factor != 1 || site_.layout.dim >= last) return std::nullopt;
    const auto& sizes = spread.sizes;
    const bool is_row = c10::multiply_integers(sizes) == gradient_.size(last) &&
                        sizes[static_cast<size_t>(last)] == gradient_.size(last);
    const auto layout = flattened(gradient_.sizes(), site_.layout, 1);
    // A single row is its own sum, without a copy.
    if (!is_row || gradient_.numel() == 0 || layout.per_example() == 1) return std::nullopt;
    return row_sums_by_kernel(gradient_.reshape({-1, gradient_.size(last)}), layout);
  }

  std::vector<Spread> spreads_;
  std::vector<InstantiatedGradients> norm_;  // weight and bias, once formed
};

/// [C] → [r·C]: dimension by dimension, r copies of the slot one after the other.
class RepeatRule : public LayerRule {
 public:
  using LayerRule::LayerRule;

  RuleCost cost(size_t) const override { return {}; }

  InstantiatedGradients instantiate(size_t) override {
    const auto sizes = aligned(site_.slots[0].sizes, rank(*site_.node));
    const auto& layout = site_.layout;
    const auto g = gradient_.to(accumulation_type(gradient_.scalar_type()));
    const auto each = example_first(g, layout);  // [B, r₀·s₀, r₁·s₁, …]
    std::vector<int64_t> split{layout.examples}, copies;
    for (size_t dim = 0; dim < sizes.size(); ++dim) {
      split.push_back(each.size(static_cast<int64_t>(dim) + 1) / sizes[dim]);
      copies.push_back(static_cast<int64_t>(split.size()) - 1);
      split.push_back(sizes[dim]);
    }
    std::vector<int64_t> result{layout.examples};
    result.insert(result.end(), site_.slots[0].sizes.begin(), site_.slots[0].sizes.end());
    return {.gradients = each.reshape(split).sum(copies).reshape(result)};
  }
};

std::unique_ptr<LayerRule> make_repeat_rule(const RuleSite& site) {
  const auto sizes = aligned(site.slots[0].sizes, rank(*site.node));
  const int64_t size = sizes[static_cast<size_t>(site.layout.dim)];
  if (size == 0 || site.layout.inner % size != 0) return nullptr;  // copies that examples share
  return std::make_unique<RepeatRule>(site);
}

}  // namespace

std::unique_ptr<LayerRule> make_broadcast_rule(const RuleSite& site) {
  const auto& node = *site.node;
  if (site.slots.empty() || rank(node) == 0) return nullptr;
  if (node.name == "RepeatBackward0") return make_repeat_rule(site);
  std::vector<Spread> spreads;
  for (const auto& slot : site.slots) {
    auto spread = spread_of(node, slot);
    // A slot that has the examples' dimension itself belongs to single examples.
    if (!spread || spread->sizes.size() != rank(node) ||
        spread->sizes[static_cast<size_t>(site.layout.dim)] != 1) {
      return nullptr;
    }
    spreads.push_back(*std::move(spread));
  }
  return std::make_unique<BroadcastRule>(site, std::move(spreads));
}

}  // namespace torchlore::detail
