#include "row_products.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "../per_sample_math.hpp"

namespace torchlore::detail {

at::Tensor RowProducts::formed() const {
  return x.defined() ? at::bmm(g.transpose(1, 2), x) : g.sum(1);
}

at::Tensor RowProducts::ghost_norms() const {
  if (!x.defined()) return squared_norms(formed());
  const auto dtype = accumulation_type(g.scalar_type());
  const auto wide_x = x.to(dtype), wide_g = g.to(dtype);
  const auto of_x = at::bmm(wide_x, wide_x.transpose(1, 2));
  const auto of_g = at::bmm(wide_g, wide_g.transpose(1, 2));
  // Rounding may leave a sum that is 0 a little below it.
  return (of_x * of_g).sum({1, 2}).to(at::kDouble).clamp_min(0);
}

at::Tensor RowProducts::weighted_sum(const at::Tensor& factors) const {
  const auto dtype = accumulation_type(g.scalar_type());
  const auto weighed = g.to(dtype) * factors.to(dtype).view({-1, 1, 1});
  if (!x.defined()) return weighed.flatten(0, 1).sum(0);
  return weighed.flatten(0, 1).t().mm(x.to(dtype).flatten(0, 1));
}

RuleCost RowProductRule::cost(size_t slot) const {
  const auto& [x, g] = products_[slot];
  if (!x.defined()) return {};
  const auto rows = static_cast<double>(g.size(0) * g.size(1));
  const auto t = static_cast<double>(g.size(1)), p = static_cast<double>(g.size(2)),
             d = static_cast<double>(x.size(2));
  return {.instantiate = rows * p * d, .ghost = rows * t * (p + d), .is_small = false};
}

InstantiatedGradients RowProductRule::instantiate(size_t slot) {
  auto sizes = site_.slots[slot].sizes;
  sizes.insert(sizes.begin(), site_.layout.examples);
  return {.gradients = products_[slot].formed().reshape(sizes)};
}

at::Tensor RowProductRule::weighted_sum(size_t slot, const at::Tensor& factors) {
  return products_[slot].weighted_sum(factors).reshape(site_.slots[slot].sizes);
}

void RowProductRule::drop(const at::Tensor& dropped) {
  for (auto& [x, g] : products_) {
    g = without_examples(g, dropped);
    if (x.defined()) x = without_examples(x, dropped);
  }
}

}  // namespace torchlore::detail
