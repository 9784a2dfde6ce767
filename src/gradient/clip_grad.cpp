#include "torchlore/gradient/clip_grad.hpp"

#include <ATen/ops/stack.h>

#include "nonfinite.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

void check(double max_norm, const ClipGradNormOptions& options) {
  TORCH_CHECK_VALUE(max_norm > 0, "max_norm must be above 0, but is ", max_norm,
                    "; use infinity to measure without clipping");
  check_norm_type(options.norm_type);
}

at::Tensor clip_gradients_(at::TensorList grads, double max_norm,
                           const ClipGradNormOptions& options) {
  const auto stats = gradient_stats(grads, options.norm_type, options.reducer);
  const auto clipped = clip_to_norm(stats.norm, options.divisor, max_norm);
  if (options.error_if_nonfinite) detail::check_finite_norm(clipped.norm);
  divide_gradients_(grads, clipped.divisor);
  return clipped.norm;
}

}  // namespace

at::Tensor clip_grad_norm_(const ParameterView& parameters, double max_norm,
                           const ClipGradNormOptions& options) {
  check(max_norm, options);
  return clip_gradients_(gradients(parameters), max_norm, options);
}

at::Tensor clip_grad_norm_per_group_(const ParameterView& parameters, double max_norm,
                                     const ClipGradNormOptions& options) {
  check(max_norm, options);
  std::vector<std::vector<at::Tensor>> grads;
  for (const auto& group : parameters.groups()) grads.push_back(gradients(group));
  std::vector<at::Tensor> norms;
  for (const auto& group : grads) norms.push_back(clip_gradients_(group, max_norm, options));
  return at::stack(norms);
}

void clip_grad_value_(const ParameterView& parameters, double clip_value) {
  check_positive("clip_value", clip_value);
  check_gradients(gradients(parameters));
  parameters.for_each([&](const at::Tensor& parameter) {
    auto& grad = parameter.mutable_grad();
    if (!grad.defined()) return;
    if (grad.is_sparse()) grad = grad.coalesce();
    auto values = grad.is_sparse() ? grad._values() : grad;
    values.clamp_(-clip_value, clip_value);
  });
}

}  // namespace torchlore
