#include "attempt_state.hpp"

#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

namespace torchlore::memory {
namespace {

/// Writes values without telling autograd: for a graph from outside nothing has changed.
void write_unseen(const at::Tensor& tensor, const at::Tensor& values) {
  tensor.variable_data().copy_(values);
}

}  // namespace

AttemptState::AttemptState() : rng_(RngState::capture()) {
  for (const auto& [device, state] : rng_.state_dict()) {
    bytes_ = bytes_ + Bytes(static_cast<int64_t>(state.nbytes()));
  }
}

AttemptState::~AttemptState() = default;
AttemptState::AttemptState(AttemptState&&) noexcept = default;
AttemptState& AttemptState::operator=(AttemptState&&) noexcept = default;

at::Tensor AttemptState::copy_of(const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  auto copy = tensor.detach().clone();
  const auto& values = copy.is_sparse() ? copy._values() : copy;
  bytes_ = bytes_ + Bytes(static_cast<int64_t>(values.nbytes()));
  return copy;
}

void AttemptState::add_gradients(const ParameterView& parameters) {
  parameters.for_each([&](const at::Tensor& parameter) {
    if (!seen_gradients_.insert(parameter.unsafeGetTensorImpl()).second) return;
    const auto& gradient = parameter.grad();
    gradients_.push_back(
        {parameter, gradient, gradient.defined() ? copy_of(gradient) : at::Tensor()});
  });
}

void AttemptState::add_value(const at::Tensor& tensor) {
  if (!tensor.defined() || !seen_values_.insert(tensor.unsafeGetTensorImpl()).second) return;
  values_.emplace_back(tensor, copy_of(tensor));
}

void AttemptState::add_buffers(const torch::nn::Module& module) {
  for (const auto& buffer : module.buffers()) add_value(buffer);
}

void AttemptState::add_module(const torch::nn::Module& module) {
  add_gradients(module);
  add_buffers(module);
}

void AttemptState::add_optimizer(torch::optim::Optimizer& optimizer) {
  detail::for_each_state_tensor(optimizer, [&](const at::Tensor& tensor) { add_value(tensor); });
  for (const auto& group : optimizer.param_groups()) {
    for (const auto& parameter : group.params()) add_value(parameter);
  }
  add_gradients(optimizer);
  optimizers_.emplace_back(optimizer);
}

void AttemptState::restore() {
  const at::NoGradGuard no_grad;
  for (const auto& [parameter, gradient, values] : gradients_) {
    parameter.mutable_grad() = gradient;
    if (gradient.defined()) write_unseen(gradient, values);
  }
  for (const auto& optimizer : optimizers_) optimizer.put_back();
  for (const auto& [tensor, values] : values_) write_unseen(tensor, values);
  rng_.put_back();
}

std::vector<at::Tensor> AttemptState::current() const {
  std::vector<at::Tensor> all;
  for (const auto& gradient : gradients_) all.push_back(gradient.parameter.grad());
  for (const auto& [tensor, values] : values_) all.push_back(tensor);
  for (const auto& [device, state] : RngState::capture().state_dict()) all.push_back(state);
  return all;
}

std::string AttemptState::name_of(size_t index) const {
  if (index < gradients_.size()) return "gradient " + std::to_string(index);
  index -= gradients_.size();
  if (index < values_.size()) return "buffer, parameter or tensor " + std::to_string(index);
  return "the state of the random generators";
}

}  // namespace torchlore::memory
