#include "per_sample_math.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "rules/cpu_kernels.hpp"

namespace torchlore::detail {

at::ScalarType accumulation_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor squared_norms(const at::Tensor& gradients) {
  if (auto squares = squared_norms_by_kernel(gradients)) return *squares;
  const auto wide = gradients.to(accumulation_type(gradients.scalar_type()));
  if (wide.dim() == 1) return wide.to(at::kDouble).square();
  return wide.flatten(1).square().sum(1).to(at::kDouble);
}

at::Tensor weighted_sum(const at::Tensor& gradients, const at::Tensor& factors) {
  if (auto sum = weighted_sum_by_kernel(gradients, factors)) return *sum;
  const auto dtype = accumulation_type(gradients.scalar_type());
  const auto rows = gradients.to(dtype).reshape({gradients.size(0), -1});
  return rows.t().mv(factors.to(dtype)).view(gradients.sizes().slice(1));
}

at::Tensor without_examples(const at::Tensor& gradients, const at::Tensor& dropped) {
  std::vector<int64_t> sizes(static_cast<size_t>(gradients.dim()), 1);
  sizes[0] = dropped.numel();
  return gradients.masked_fill(dropped.view(sizes), 0);
}

}  // namespace torchlore::detail
