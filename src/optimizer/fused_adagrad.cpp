#include "torchlore/optimizer/fused_adagrad.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adagrad.h>

#include "fused_step.hpp"

namespace torchlore {
namespace {

using torch::optim::AdagradOptions;
using torch::optim::AdagradParamState;

/// A parameter without a state goes to the namesake, whose message says what is wrong.
bool state_fits(const at::Tensor& param, const torch::optim::OptimizerParamState* state) {
  return state != nullptr &&
         fused::same_layout(param, static_cast<const AdagradParamState&>(*state).sum());
}

fused::BatchList batches_of(const std::vector<fused::Item>& items) {
  fused::BatchList list;
  for (const auto& item : items) {
    auto& state = static_cast<AdagradParamState&>(*item.state);
    state.step(state.step() + 1);
    list.add(*item.param, state.step(), items.size()).state[0].push_back(state.sum());
  }
  return list;
}

void update(torch::optim::Adagrad& optimizer, const std::optional<at::Tensor>& divisor) {
  static constexpr fused::Kernel kKernel{.optimizer = "FusedAdagrad",
                                         .op = "aten::_fused_adagrad_"};
  const auto step_group = [&](torch::optim::OptimizerParamGroup& group,
                              const std::vector<fused::Item>& items,
                              const std::optional<at::Tensor>& left) {
    const auto& options = static_cast<const AdagradOptions&>(group.options());
    const auto list = batches_of(items);
    for (const auto& batch : list.batches()) {
      batch.run(left, [&](const fused::Lists& l, const std::optional<at::Tensor>& grad_scale) {
        at::_fused_adagrad_(l.params, l.grads, l.first, l.steps, options.lr(), options.lr_decay(),
                            options.weight_decay(), options.eps(), /*maximize=*/false, grad_scale,
                            std::nullopt);
      });
    }
  };
  fused::step<torch::optim::Adagrad>(optimizer, kKernel, divisor, state_fits, step_group);
}

}  // namespace

torch::Tensor FusedAdagrad::step(LossClosure closure) {
  const at::NoGradGuard no_grad;
  auto loss = fused::evaluate(closure);
  update(*this, std::nullopt);
  return loss;
}

void FusedAdagrad::step_scaled(const at::Tensor& divisor) {
  const at::NoGradGuard no_grad;
  update(*this, divisor);
}

}  // namespace torchlore
