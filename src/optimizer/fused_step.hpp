#pragma once

#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

/// What the fused optimizers share: which parameters the kernel takes, and in which calls.
namespace torchlore::fused {

/// What a kernel can do, apart from its arithmetic.
struct Kernel {
  const char* optimizer;         ///< the class, for messages
  const char* op;                ///< the operator's name, `aten::…`
  bool half_on_cpu = true;       ///< the CPU kernel is right for float16 and bfloat16
  bool sparse_gradients = true;  ///< the namesake's own step takes them
};

/// A parameter that the kernel takes, and its state (null before its first step).
struct Item {
  const at::Tensor* param;
  torch::optim::OptimizerParamState* state;
};

/// Where each parameter with a gradient goes, one list per group.
struct Plan {
  std::vector<std::vector<Item>> fused = {};
  std::vector<std::vector<at::Tensor>> plain = {};  ///< for the namesake's own step
  bool any_plain = false;
  bool repeated =
      false;  ///< a parameter is listed more than once; all but the first are in `plain`
};

/// Whether the kernel can start from the state of a parameter: there is none (null) and one can be
/// made, or its tensors are laid out as the parameter is.
using StateFits = bool (*)(const at::Tensor& param, const torch::optim::OptimizerParamState* state);

/// Sorts the parameters. Changes nothing; throws for what no optimizer here can step.
Plan make_plan(torch::optim::Optimizer& optimizer, const Kernel& kernel, StateFits state_fits);

/// Same dtype, device and strides: element i of one lies where element i of the other does.
bool same_layout(const at::Tensor& param, const at::Tensor& other);

/// Divides what the kernel does not divide itself: all gradients but float32 ones of fused
/// parameters.
/// @return what is left for the kernel to divide by: `divisor`, or nothing.
std::optional<at::Tensor> divide_outside_kernel(const Plan& plan, const at::Tensor& divisor);

/// Checks a divisor before anything is changed.
void check_divisor(const at::Tensor& divisor);

/// Evaluates a step's closure with gradients enabled.
at::Tensor evaluate(const torch::optim::Optimizer::LossClosure& closure);

/// The tensor lists of one kernel call.
struct Lists {
  at::TensorList params, grads, first, second, third, steps;
};

/// Tensors that share device, dtype and step count, and so can share a kernel call.
struct Batch {
  int64_t step = 0;
  bool small = false;  ///< too small, each of them, to be worth more than one thread
  std::vector<at::Tensor> params = {};
  std::vector<at::Tensor> grads = {};
  std::vector<at::Tensor> state[3] = {};  ///< each as long as `params`, or empty

  /// Calls `call(lists, grad_scale)` for all tensors of the batch. LibTorch's CPU kernels open a
  /// parallel region per tensor; small tensors are shared out among the threads in one region
  /// instead.
  template <typename Call>
  void run(const std::optional<at::Tensor>& divisor, const Call& call) const {
    const auto all_steps = steps();
    const auto grad_scale = scale(divisor);
    for_each_part([&](size_t begin, size_t count) {
      const auto part = [&](const std::vector<at::Tensor>& list) {
        return list.empty() ? at::TensorList() : at::TensorList(list).slice(begin, count);
      };
      call(Lists{part(params), part(grads), part(state[0]), part(state[1]), part(state[2]),
                 part(all_steps)},
           grad_scale);
    });
  }

 private:
  /// `step` for each parameter, as the kernels want it: one float32 tensor, shared.
  std::vector<at::Tensor> steps() const;
  /// The divisor where the kernel divides (float32), else nothing.
  std::optional<at::Tensor> scale(const std::optional<at::Tensor>& divisor) const;
  void for_each_part(const std::function<void(size_t begin, size_t count)>& f) const;
};

/// Batches in order of first use.
class BatchList {
 public:
  /// The batch for `param` at `step`, with the parameter and its gradient added.
  Batch& add(const at::Tensor& param, int64_t step, size_t expected);
  const std::vector<Batch>& batches() const { return batches_; }

 private:
  std::vector<Batch> batches_;
};

/// Shows an optimizer only the given parameters of each group, while it lives.
class OnlyThese {
 public:
  OnlyThese(torch::optim::Optimizer& optimizer, std::vector<std::vector<at::Tensor>>& params);
  ~OnlyThese();
  OnlyThese(const OnlyThese&) = delete;
  OnlyThese& operator=(const OnlyThese&) = delete;

 private:
  void swap();
  torch::optim::Optimizer& optimizer_;
  std::vector<std::vector<at::Tensor>>& params_;
};

/// The order of one step, the same for every optimizer.
/// @tparam Namesake the `torch::optim` class whose own step takes what the kernel cannot.
/// @param step_group called as (group, items, divisor) for each group.
template <typename Namesake, typename StepGroup>
void step(Namesake& optimizer, const Kernel& kernel, const std::optional<at::Tensor>& divisor,
          StateFits state_fits, StepGroup step_group) {
  if (divisor) check_divisor(*divisor);
  auto plan = make_plan(optimizer, kernel, state_fits);
  const auto left = divisor ? divide_outside_kernel(plan, *divisor) : std::nullopt;
  if (plan.any_plain) {
    const OnlyThese scope(optimizer, plan.plain);
    optimizer.Namesake::step();
  }
  for (size_t g = 0; g < plan.fused.size(); ++g) {
    if (!plan.fused[g].empty()) step_group(optimizer.param_groups()[g], plan.fused[g], left);
  }
}

}  // namespace torchlore::fused
