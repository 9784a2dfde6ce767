#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "../per_sample_math.hpp"
#include "cpu_kernels.hpp"
#include "layer_rule.hpp"

// Products with a parameter. All are brought to one form: rows x [n, R, d] (n = 1 but for batched products)
// and their gradients g [n, R, p] with the example in R, so that the gradient by the parameter is gᵀx
// [n, p, d], summed over the rows of an example.
namespace torchlore::detail {
namespace {

/// One product, in that form.
struct Product {
  at::Tensor rows = {};             // x [n, R, d]
  ExampleLayout layout = {};        // of R
  bool gradient_is_turned = false;  // the op's output is [.., p, R]
  bool weight_is_turned = false;    // the op sees the parameter as [.., d, p]
  double factor = 1;
};

double number_or(const TapeNode& node, std::string_view name, double otherwise) {
  const auto* value = node.find_attribute(name);
  if (value == nullptr) return otherwise;
  if (const auto* whole = std::get_if<int64_t>(value)) return static_cast<double>(*whole);
  if (const auto* flag = std::get_if<bool>(value)) return *flag ? 1 : 0;
  return std::get<double>(*value);
}

at::Tensor batched(const at::Tensor& matrix) {
  return matrix.dim() == 3 ? matrix : matrix.unsqueeze(0);
}

/// The parameter is the right factor (rows · parameter) or the left one; rows is the other factor.
std::optional<Product> matrix_product(const RuleSite& site, bool is_right, const at::Tensor& other,
                                      double factor) {
  if (!other.defined()) return std::nullopt;  // both factors are parameters
  const int64_t columns = static_cast<int64_t>(site.node->outputs[0].sizes.size()) - 1;
  if (site.layout.dim != (is_right ? columns - 1 : columns)) return std::nullopt;
  auto layout = site.layout;
  layout.dim = 1;
  return Product{.rows = batched(is_right ? other : other.transpose(-1, -2)),
                 .layout = layout,
                 .gradient_is_turned = !is_right,
                 .weight_is_turned = is_right,
                 .factor = factor};
}

/// The same for vectors: self [R, d] · vec [d].
std::optional<Product> vector_product(const RuleSite& site, const at::Tensor& matrix,
                                      double factor) {
  if (!matrix.defined() || site.layout.dim != 0) return std::nullopt;
  auto layout = site.layout;
  layout.dim = 1;
  return Product{.rows = matrix.unsqueeze(0), .layout = layout, .factor = factor};
}

std::optional<Product> linear_product(const RuleSite& site, const at::Tensor& input) {
  const auto columns = static_cast<int64_t>(site.node->outputs[0].sizes.size()) - 1;
  if (!input.defined() || site.layout.dim >= columns) return std::nullopt;
  auto layout = flattened(site.node->outputs[0].sizes, site.layout, 1);
  layout.dim = 1;
  return Product{.rows = input.reshape({1, -1, input.size(-1)}), .layout = layout};
}

/// The product that a slot is a factor of; nothing if it is none, or cannot be told apart.
std::optional<Product> product_of(const RuleSite& site, const RuleSlot& slot) {
  const auto& node = *site.node;
  const double alpha = number_or(node, "alpha", 1);
  const auto saved = [&](std::string_view name) { return node.saved_tensor(name); };
  switch (node.op) {
    case TapeOp::mm:
    case TapeOp::bmm:
      if (slot.input == "mat2") return matrix_product(site, true, saved("self"), 1);
      return matrix_product(site, false, saved("mat2"), 1);
    case TapeOp::addmm:
      if (slot.input == "mat2") return matrix_product(site, true, saved("mat1"), alpha);
      if (slot.input == "mat1") return matrix_product(site, false, saved("mat2"), alpha);
      return std::nullopt;
    case TapeOp::baddbmm:
      if (slot.input == "batch2") return matrix_product(site, true, saved("batch1"), alpha);
      if (slot.input == "batch1") return matrix_product(site, false, saved("batch2"), alpha);
      return std::nullopt;
    case TapeOp::mv:
      return slot.input == "vec" ? vector_product(site, saved("self"), 1) : std::nullopt;
    case TapeOp::addmv:
      return slot.input == "vec" ? vector_product(site, saved("mat"), alpha) : std::nullopt;
    case TapeOp::linear:
      if (slot.input != "weight") return std::nullopt;
      return linear_product(site, saved(node.name == "LinearBackward0" ? "input" : "self"));
    default:
      return std::nullopt;
  }
}

/// The weight; then the other slots, which are added to the product and follow the broadcast rule.
class LinearRule : public LayerRule {
 public:
  LinearRule(RuleSite site, size_t weight, Product product, std::unique_ptr<LayerRule> added)
      : LayerRule(std::move(site)),
        weight_(weight),
        product_(std::move(product)),
        added_(std::move(added)) {}

  void take(const at::Tensor& gradient) override {
    if (added_ != nullptr) added_->take(gradient);
    auto g = gradient;
    if (product_.gradient_is_turned) g = g.transpose(-1, -2);
    if (site_.node->op == TapeOp::linear) g = g.reshape({-1, g.size(-1)});
    if (site_.node->op == TapeOp::mv || site_.node->op == TapeOp::addmv) g = g.unsqueeze(1);
    gradient_ = batched(g);
  }

  RuleCost cost(size_t slot) const override {
    if (slot != weight_) return {};
    const auto& rows = product_.rows;
    const auto batch = static_cast<double>(rows.size(0) * product_.layout.examples);
    const auto t = static_cast<double>(product_.layout.per_example());
    const auto d = static_cast<double>(rows.size(2)), p = outputs();
    RuleCost result{.instantiate = batch * t * p * d, .is_small = false};
    result.ghost = t == 1 ? batch * (p + d) : batch * t * t * (p + d);
    return result;
  }

  InstantiatedGradients instantiate(size_t slot) override {
    if (slot != weight_) return added_->instantiate(added_slot(slot));
    if (const auto formed = by_kernel(true)) {
      return {.gradients = as_slot(formed->gradients.unsqueeze(1)), .squares = formed->squares};
    }
    const auto x = by_example(product_.rows), g = by_example(gradient_);
    auto gradients = g.transpose(-1, -2).matmul(x);  // [B, n, p, d]
    if (product_.factor != 1) gradients.mul_(product_.factor);
    return {.gradients = as_slot(std::move(gradients))};
  }

  at::Tensor ghost_norms(size_t slot) override {
    if (slot != weight_) return squared_norms(instantiate(slot).gradients);
    const bool is_single = product_.layout.per_example() == 1;
    if (is_single) {
      if (const auto formed = by_kernel(false)) return formed->squares;
    }
    const auto x = by_example(product_.rows), g = by_example(gradient_);
    at::Tensor result;
    if (is_single) {
      result = (squares_of_rows(x) * squares_of_rows(g)).sum({1, 2});
    } else {
      const auto dtype = accumulation_type(g.scalar_type());
      const auto wide_x = x.to(dtype), wide_g = g.to(dtype);
      result = wide_x.matmul(wide_x.transpose(-1, -2))
                   .mul_(wide_g.matmul(wide_g.transpose(-1, -2)))
                   .sum({1, 2, 3});
    }
    // Rounding may leave a sum that is 0 a little below it.
    return result.to(at::kDouble).clamp_min(0).mul(product_.factor * product_.factor);
  }

  at::Tensor norms(size_t slot) override {
    if (slot != weight_) return added_->norms(added_slot(slot));
    if (const auto formed = by_kernel(false)) return formed->squares;
    const auto x = by_example(product_.rows), g = by_example(gradient_);
    const int64_t at_a_time = examples_at_a_time();
    std::vector<at::Tensor> parts;
    for (int64_t from = 0; from < x.size(0); from += at_a_time) {
      const int64_t count = std::min(at_a_time, x.size(0) - from);
      const auto some = g.narrow(0, from, count).transpose(-1, -2).matmul(x.narrow(0, from, count));
      parts.push_back(squared_norms(some));
    }
    return at::cat(parts).mul(product_.factor * product_.factor);
  }

  at::Tensor weighted_sum(size_t slot, const at::Tensor& factors) override {
    if (slot != weight_) return added_->weighted_sum(added_slot(slot), factors);
    const auto dtype = accumulation_type(gradient_.scalar_type());
    const auto rows =
        per_index(factors.mul(product_.factor), product_.layout).to(dtype).view({1, -1, 1});
    auto g = gradient_.to(dtype), x = product_.rows.to(dtype);
    if (g.size(2) > x.size(2)) {
      x = x * rows;
    } else {
      g = is_ours(g) ? g.mul_(rows) : g * rows;
    }
    const auto sum = g.size(0) == 1 ? g[0].t().mm(x[0]).unsqueeze(0) : g.transpose(1, 2).matmul(x);
    return as_slot(sum.unsqueeze(0)).squeeze(0);
  }

  void drop(const at::Tensor& dropped) override {
    if (added_ != nullptr) added_->drop(dropped);
    gradient_ = zeroed(gradient_, product_.layout, dropped);
    product_.rows = zeroed(product_.rows, product_.layout, dropped);
  }

 private:
  double outputs() const {
    double result = 1;
    for (const int64_t size : site_.slots[weight_].sizes) result *= static_cast<double>(size);
    return result / static_cast<double>(product_.rows.size(0) * product_.rows.size(2));
  }

  /// As many as fill 16 MiB.
  int64_t examples_at_a_time() const {
    const auto& rows = product_.rows;
    const double bytes = outputs() * static_cast<double>(rows.size(0) * rows.size(2)) *
                         static_cast<double>(rows.element_size());
    return std::max<int64_t>(1, static_cast<int64_t>(16.0 * 1024 * 1024 / bytes));
  }

  /// Whether nobody else can see `g`, so that it may be scaled where it lies. Memory that was lent to
  /// LibTorch, which others may see, is not resizable.
  bool is_ours(const at::Tensor& g) {
    if (!g.is_same(gradient_)) return true;   // converted
    if (added_ != nullptr) added_->take({});  // small, so it was summed when the gradient came
    return g.storage().resizable() && g.storage().use_count() == 1 &&
           g.is_non_overlapping_and_dense();
  }

  std::optional<InstantiatedGradients> by_kernel(bool is_kept) const {
    if (product_.rows.size(0) != 1 || product_.factor != 1) return std::nullopt;
    return products_by_kernel(product_.rows[0], gradient_[0], product_.layout, is_kept);
  }

  size_t added_slot(size_t slot) const { return slot > weight_ ? slot - 1 : slot; }

  /// [n, R, k] → [B, n, R/B, k].
  at::Tensor by_example(const at::Tensor& value) const {
    return example_first(value, product_.layout);
  }

  static at::Tensor squares_of_rows(const at::Tensor& value) {
    return value.to(accumulation_type(value.scalar_type())).square().sum(-1);
  }

  /// [B, n, p, d] → [B, *sizes of the slot].
  at::Tensor as_slot(at::Tensor gradients) const {
    if (product_.weight_is_turned) gradients = gradients.transpose(-1, -2);
    std::vector<int64_t> sizes{gradients.size(0)};
    const auto& slot = site_.slots[weight_].sizes;
    sizes.insert(sizes.end(), slot.begin(), slot.end());
    return gradients.reshape(sizes);
  }

  size_t weight_;
  Product product_;
  std::unique_ptr<LayerRule> added_;
};

}  // namespace

std::unique_ptr<LayerRule> make_linear_rule(const RuleSite& site) {
  for (size_t i = 0; i < site.slots.size(); ++i) {
    auto product = product_of(site, site.slots[i]);
    if (!product) continue;
    RuleSite rest{.node = site.node, .layout = site.layout, .slots = site.slots};
    rest.slots.erase(rest.slots.begin() + static_cast<std::ptrdiff_t>(i));
    std::unique_ptr<LayerRule> added;
    if (!rest.slots.empty() && (added = make_broadcast_rule(rest)) == nullptr) return nullptr;
    return std::make_unique<LinearRule>(site, i, *std::move(product), std::move(added));
  }
  return nullptr;
}

}  // namespace torchlore::detail
