#pragma once

#include <ATen/ops/zeros_like.h>

#include <memory>
#include <tuple>

#include "fused_step.hpp"

/// What Adam and AdamW share: everything but the kernel.
namespace torchlore::fused {

template <typename State>
bool adam_state_fits(const at::Tensor& param, const torch::optim::OptimizerParamState* base) {
  if (base == nullptr) return true;
  const auto& state = static_cast<const State&>(*base);
  const auto& largest = state.max_exp_avg_sq();
  return same_layout(param, state.exp_avg()) && same_layout(param, state.exp_avg_sq()) &&
         (!largest.defined() || same_layout(param, largest));
}

/// The state of a parameter; what is missing is made as the namesake makes it.
template <typename State>
State& adam_state(torch::optim::Optimizer& optimizer, const Item& item, bool amsgrad) {
  const auto zeros = [&] { return at::zeros_like(*item.param, at::MemoryFormat::Preserve); };
  auto* base = item.state;
  if (base == nullptr) {
    auto& slot = optimizer.state()[item.param->unsafeGetTensorImpl()];
    if (slot == nullptr) {
      auto made = std::make_unique<State>();
      made->exp_avg(zeros());
      made->exp_avg_sq(zeros());
      slot = std::move(made);
    }
    base = slot.get();
  }
  auto& state = static_cast<State&>(*base);
  if (amsgrad && !state.max_exp_avg_sq().defined()) state.max_exp_avg_sq(zeros());
  return state;
}

/// Counts the step and sorts the tensors of one group into kernel calls.
template <typename State>
BatchList adam_batches(torch::optim::Optimizer& optimizer, const std::vector<Item>& items,
                       bool amsgrad) {
  BatchList list;
  for (const auto& item : items) {
    auto& state = adam_state<State>(optimizer, item, amsgrad);
    state.step(state.step() + 1);
    auto& batch = list.add(*item.param, state.step(), items.size());
    batch.state[0].push_back(state.exp_avg());
    batch.state[1].push_back(state.exp_avg_sq());
    if (amsgrad) batch.state[2].push_back(state.max_exp_avg_sq());
  }
  return list;
}

/// One step of Adam or AdamW.
/// @param kernel_call the `at::_fused_…_` function.
template <typename Namesake, typename Options, typename State, typename KernelCall>
void adam_step(Namesake& optimizer, const Kernel& kernel, const std::optional<at::Tensor>& divisor,
               KernelCall kernel_call) {
  const auto step_group = [&](torch::optim::OptimizerParamGroup& group,
                              const std::vector<Item>& items,
                              const std::optional<at::Tensor>& left) {
    const auto& options = static_cast<const Options&>(group.options());
    const auto beta1 = std::get<0>(options.betas());
    const auto beta2 = std::get<1>(options.betas());
    const auto list = adam_batches<State>(optimizer, items, options.amsgrad());
    for (const auto& batch : list.batches()) {
      batch.run(left, [&](const Lists& l, const std::optional<at::Tensor>& grad_scale) {
        kernel_call(l.params, l.grads, l.first, l.second, l.third, l.steps, options.lr(), beta1,
                    beta2, options.weight_decay(), options.eps(), options.amsgrad(),
                    /*maximize=*/false, grad_scale, std::nullopt);
      });
    }
  };
  step<Namesake>(optimizer, kernel, divisor, adam_state_fits<State>, step_group);
}

}  // namespace torchlore::fused
