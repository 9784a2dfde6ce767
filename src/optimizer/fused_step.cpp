#include "fused_step.hpp"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

#include <utility>

#include "torchlore/core/gradient_pass.hpp"

namespace torchlore::fused {
namespace {

bool is_half(const at::Tensor& t) {
  return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16;
}

bool kernel_exists(const Kernel& kernel, const at::Tensor& param) {
  if (param.is_cpu()) return kernel.half_on_cpu || !is_half(param);
  const auto op = c10::Dispatcher::singleton().findSchema({kernel.op, ""});
  return op && op->hasKernelForDispatchKey(c10::legacyExtractDispatchKey(param.key_set()));
}

void check(const Kernel& kernel, const at::Tensor& param) {
  const auto dtype = param.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      kernel.optimizer, " got a parameter of dtype ", dtype,
      "; parameters must be float16, bfloat16, float32 or float64");
  TORCH_CHECK_NOT_IMPLEMENTED(
      kernel.sparse_gradients || !param.grad().is_sparse(), kernel.optimizer,
      " does not support sparse gradients; give the parameters that have them to FusedSGD or "
      "FusedAdagrad");
}

bool fits(const Kernel& kernel, const at::Tensor& param) {
  return param.layout() == at::kStrided && param.is_non_overlapping_and_dense() &&
         same_layout(param, param.grad()) && kernel_exists(kernel, param);
}

}  // namespace

bool same_layout(const at::Tensor& param, const at::Tensor& other) {
  return other.layout() == at::kStrided && other.scalar_type() == param.scalar_type() &&
         other.device() == param.device() && other.sizes() == param.sizes() &&
         ((param.is_contiguous() && other.is_contiguous()) || param.strides() == other.strides());
}

Plan make_plan(torch::optim::Optimizer& optimizer, const Kernel& kernel, StateFits state_fits) {
  const auto& groups = optimizer.param_groups();
  const auto& states = optimizer.state();
  Plan plan{std::vector<std::vector<Item>>(groups.size()),
            std::vector<std::vector<at::Tensor>>(groups.size())};
  for (size_t g = 0; g < groups.size(); ++g) {
    plan.fused[g].reserve(groups[g].params().size());
    for (const auto& param : groups[g].params()) {
      if (!param.grad().defined()) continue;
      check(kernel, param);
      const auto found = states.find(param.unsafeGetTensorImpl());
      auto* state = found == states.end() ? nullptr : found->second.get();
      if (fits(kernel, param) && (state == nullptr || state_fits(param, *state))) {
        plan.fused[g].push_back({&param, state});
      } else {
        plan.plain[g].push_back(param);
        plan.any_plain = true;
      }
    }
  }
  return plan;
}

void divide_outside_kernel(const Plan& plan, const at::Tensor& divisor) {
  std::vector<at::Tensor> grads;
  for (const auto& group : plan.fused) {
    for (const auto& item : group) {
      if (item.param->scalar_type() != at::kFloat) grads.push_back(item.param->grad());
    }
  }
  for (const auto& group : plan.plain) {
    for (const auto& param : group) grads.push_back(param.grad());
  }
  if (!grads.empty()) divide_gradients_(grads, divisor);
}

void check_divisor(const at::Tensor& divisor) {
  TORCH_CHECK_VALUE(divisor.defined() && divisor.numel() == 1,
                    "a divisor must be one number, but has shape ",
                    divisor.defined() ? divisor.sizes() : at::IntArrayRef());
  TORCH_CHECK_TYPE(at::isFloatingType(divisor.scalar_type()),
                   "a divisor must be a floating tensor, but has dtype ", divisor.scalar_type());
}

at::Tensor evaluate(const torch::optim::Optimizer::LossClosure& closure) {
  if (closure == nullptr) return {};
  const at::AutoGradMode enable_grad(true);
  return closure();
}

std::vector<at::Tensor> Batch::steps() const {
  const auto value = at::full({}, static_cast<double>(step), params[0].options().dtype(at::kFloat));
  return std::vector<at::Tensor>(params.size(), value);
}

std::optional<at::Tensor> Batch::scale(const std::optional<at::Tensor>& divisor) const {
  if (!divisor || params[0].scalar_type() != at::kFloat) return std::nullopt;
  return divisor->to(params[0].device(), at::kFloat);
}

Batch& BatchList::add(const at::Tensor& param, int64_t step, size_t expected) {
  auto batch = batches_.rbegin();
  for (; batch != batches_.rend(); ++batch) {
    const auto& first = batch->params[0];
    if (batch->step == step && first.scalar_type() == param.scalar_type() &&
        first.device() == param.device()) {
      break;
    }
  }
  if (batch == batches_.rend()) {
    batches_.emplace_back().step = step;
    batch = batches_.rbegin();
    batch->params.reserve(expected);
    batch->grads.reserve(expected);
  }
  batch->params.push_back(param);
  batch->grads.push_back(param.grad());
  return *batch;
}

OnlyThese::OnlyThese(torch::optim::Optimizer& optimizer,
                     std::vector<std::vector<at::Tensor>>& params)
    : optimizer_(optimizer), params_(params) {
  swap();
}

OnlyThese::~OnlyThese() { swap(); }

void OnlyThese::swap() {
  for (size_t g = 0; g < params_.size(); ++g) {
    std::swap(optimizer_.param_groups()[g].params(), params_[g]);
  }
}

}  // namespace torchlore::fused
