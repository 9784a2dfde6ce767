#include "torchlore/optimizer/fused_adam.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adam.h>

#include "adam_step.hpp"

namespace torchlore {
namespace {

void update(torch::optim::Adam& optimizer, const std::optional<at::Tensor>& divisor) {
  static constexpr fused::Kernel kKernel{
      .optimizer = "FusedAdam", .op = "aten::_fused_adam_", .sparse_gradients = false};
  fused::adam_step<torch::optim::Adam, torch::optim::AdamOptions, torch::optim::AdamParamState>(
      optimizer, kKernel, divisor, [](auto&&... arguments) { at::_fused_adam_(arguments...); });
}

}  // namespace

torch::Tensor FusedAdam::step(LossClosure closure) {
  const at::NoGradGuard no_grad;
  auto loss = fused::evaluate(closure);
  update(*this, std::nullopt);
  return loss;
}

void FusedAdam::step_scaled(const at::Tensor& divisor) {
  const at::NoGradGuard no_grad;
  update(*this, divisor);
}

}  // namespace torchlore
