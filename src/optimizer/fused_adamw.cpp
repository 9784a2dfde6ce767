#include "torchlore/optimizer/fused_adamw.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>

#include "adam_step.hpp"

namespace torchlore {
namespace {

void update(torch::optim::AdamW& optimizer, const std::optional<at::Tensor>& divisor) {
  static constexpr fused::Kernel kKernel{
      .optimizer = "FusedAdamW", .op = "aten::_fused_adamw_", .sparse_gradients = false};
  fused::adam_step<torch::optim::AdamW, torch::optim::AdamWOptions, torch::optim::AdamWParamState>(
      optimizer, kKernel, divisor, [](auto&&... arguments) { at::_fused_adamw_(arguments...); });
}

}  // namespace

torch::Tensor FusedAdamW::step(LossClosure closure) {
  const at::NoGradGuard no_grad;
  auto loss = fused::evaluate(closure);
  update(*this, std::nullopt);
  return loss;
}

void FusedAdamW::step_scaled(const at::Tensor& divisor) {
  const at::NoGradGuard no_grad;
  update(*this, divisor);
}

}  // namespace torchlore
