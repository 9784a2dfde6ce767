#include "torchlore/core/step_result.hpp"

#include <ATen/TensorOperators.h>

#include <limits>

namespace torchlore {
namespace {

double number(const at::Tensor& value) {
  return value.defined() ? value.item().toDouble() : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

double StepResult::loss() const { return number(loss_tensor()); }

double StepResult::grad_norm() const { return number(grad_norm_); }

at::Tensor StepResult::loss_tensor() const {
  if (!loss_.sum.defined()) return {};
  if (loss_.count.on_host() && loss_.count.value() == 1) return loss_.sum.detach();
  return loss_.sum.detach() / loss_.count.tensor().to(loss_.sum.device());
}

}  // namespace torchlore
