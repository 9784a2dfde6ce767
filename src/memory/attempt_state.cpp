#include "attempt_state.hpp"

#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>

#include <type_traits>

#include "../core/optimizer_kinds.hpp"

namespace torchlore::memory {
namespace {

/// Writes values without telling autograd: for a graph from outside nothing has changed.
void write_unseen(const at::Tensor& tensor, const at::Tensor& values) {
  tensor.variable_data().copy_(values);
}

}  // namespace

/// Tensors of the state are kept as they are, and their values by `add_value`.
struct AttemptState::Optimizer {
  torch::optim::Optimizer* optimizer;
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> options;
  std::vector<std::pair<void*, std::unique_ptr<torch::optim::OptimizerParamState>>> states;

  void restore() const {
    for (size_t g = 0; g < options.size(); ++g) {
      optimizer->param_groups()[g].set_options(options[g]->clone());
    }
    optimizer->state().clear();
    for (const auto& [key, state] : states) optimizer->state()[key] = state->clone();
  }
};

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
  Optimizer saved{&optimizer, {}, {}};
  detail::visit_kind(optimizer, [&](const auto& kind) {
    using State = typename std::decay_t<decltype(kind)>::State;
    for (const auto& [key, state] : optimizer.state()) {
      auto* typed = dynamic_cast<State*>(state.get());
      TORCH_CHECK_NOT_IMPLEMENTED(typed, "the optimizer keeps state of type ",
                                  c10::demangle(typeid(*state.get()).name()), " where ", kind.name,
                                  " keeps its own; it cannot be put back before a retry");
      detail::for_each_tensor(
          *typed, [&](const char*, const at::Tensor& tensor, bool) { add_value(tensor); });
      saved.states.emplace_back(key, state->clone());
    }
  });
  for (const auto& group : optimizer.param_groups()) {
    saved.options.push_back(group.options().clone());
    for (const auto& parameter : group.params()) add_value(parameter);
  }
  add_gradients(optimizer);
  optimizers_.push_back(std::move(saved));
}

void AttemptState::restore() {
  const at::NoGradGuard no_grad;
  for (const auto& [parameter, gradient, values] : gradients_) {
    parameter.mutable_grad() = gradient;
    if (gradient.defined()) write_unseen(gradient, values);
  }
  for (const auto& optimizer : optimizers_) optimizer.restore();
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
