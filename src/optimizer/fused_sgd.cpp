#include "torchlore/optimizer/fused_sgd.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>

#include <memory>

#include "fused_step.hpp"

namespace torchlore {
namespace {

using torch::optim::SGDOptions;
using torch::optim::SGDParamState;

bool state_fits(const at::Tensor& param, const torch::optim::OptimizerParamState* state) {
  if (state == nullptr) return true;
  const auto& momentum = static_cast<const SGDParamState&>(*state).momentum_buffer();
  return !momentum.defined() || fused::same_layout(param, momentum);
}

SGDParamState& state_of(torch::optim::Optimizer& optimizer, const at::Tensor& param) {
  auto& slot = optimizer.state()[param.unsafeGetTensorImpl()];
  if (slot == nullptr) slot = std::make_unique<SGDParamState>();
  return static_cast<SGDParamState&>(*slot);
}

/// Adds a parameter to its batch. The first step of each parameter has a kernel call of its own:
/// momentum starts as the gradient, without dampening.
void add(torch::optim::Optimizer& optimizer, const fused::Item& item, bool with_momentum,
         size_t expected, fused::BatchList& list) {
  constexpr int64_t kFirst = 1, kLater = 2;
  const auto& param = *item.param;
  if (!with_momentum) {
    list.add(param, kLater, expected);
    return;
  }
  auto& state = item.state ? static_cast<SGDParamState&>(*item.state) : state_of(optimizer, param);
  const bool first = !state.momentum_buffer().defined();
  if (first) state.momentum_buffer(at::empty_like(param, at::MemoryFormat::Preserve));
  list.add(param, first ? kFirst : kLater, expected).state[0].push_back(state.momentum_buffer());
}

void update(torch::optim::SGD& optimizer, const std::optional<at::Tensor>& divisor) {
  static constexpr fused::Kernel kKernel{
      .optimizer = "FusedSGD", .op = "aten::_fused_sgd_", .half_on_cpu = false};
  const auto step_group = [&](torch::optim::OptimizerParamGroup& group,
                              const std::vector<fused::Item>& items,
                              const std::optional<at::Tensor>& left) {
    const auto& options = static_cast<const SGDOptions&>(group.options());
    fused::BatchList list;
    for (const auto& item : items)
      add(optimizer, item, options.momentum() != 0, items.size(), list);
    for (const auto& batch : list.batches()) {
      batch.run(left, [&](const fused::Lists& l, const std::optional<at::Tensor>& grad_scale) {
        at::_fused_sgd_(l.params, l.grads, l.first, options.weight_decay(), options.momentum(),
                        options.lr(), options.dampening(), options.nesterov(), /*maximize=*/false,
                        /*is_first_step=*/batch.step == 1, grad_scale, std::nullopt);
      });
    }
  };
  fused::step<torch::optim::SGD>(optimizer, kKernel, divisor, state_fits, step_group);
}

}  // namespace

torch::Tensor FusedSGD::step(LossClosure closure) {
  const at::NoGradGuard no_grad;
  auto loss = fused::evaluate(closure);
  update(*this, std::nullopt);
  return loss;
}

void FusedSGD::step_scaled(const at::Tensor& divisor) {
  const at::NoGradGuard no_grad;
  update(*this, divisor);
}

}  // namespace torchlore
