#include "training_snapshot.hpp"

#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <type_traits>
#include <unordered_set>

#include "../core/optimizer_kinds.hpp"

namespace torchlore::detail {
namespace {

bool same_tensors(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& x, const auto& y) { return x.is_same(y); });
}

}  // namespace

void TensorCopies::take(const std::vector<at::Tensor>& tensors) {
  const c10::NoGradGuard no_grad;
  if (!same_tensors(tensors, tensors_)) {
    drop();
    for (const auto& t : tensors) {
      copies_.push_back(at::empty_like(t, on_host_
                                              ? t.options().device(at::kCPU).requires_grad(false)
                                              : t.options().requires_grad(false)));
    }
    tensors_ = tensors;
  }
  for (size_t i = 0; i < tensors_.size(); ++i) copies_[i].copy_(tensors_[i]);
}

void TensorCopies::put_back() const {
  const c10::NoGradGuard no_grad;
  for (size_t i = 0; i < tensors_.size(); ++i) tensors_[i].copy_(copies_[i]);
}

void TensorCopies::drop() {
  tensors_.clear();
  copies_.clear();
}

std::vector<at::Tensor> buffers_of(const torch::nn::Module* model) {
  std::vector<at::Tensor> all;
  if (model != nullptr) all = model->buffers();
  std::erase_if(all, [](const at::Tensor& t) { return !t.defined(); });
  return all;
}

/// The state as objects; the values of its tensors, which the objects share with the optimizer, are
/// among the copies.
struct TrainingSnapshot::Saved {
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> options;
  std::vector<std::pair<void*, std::unique_ptr<torch::optim::OptimizerParamState>>> states;
};

TrainingSnapshot::TrainingSnapshot(std::vector<torch::optim::Optimizer*> optimizers,
                                   const torch::nn::Module* model, bool on_host)
    : optimizers_(std::move(optimizers)), model_(model), copies_(on_host) {
  tensors();  // refuses what it does not know
}

TrainingSnapshot::~TrainingSnapshot() = default;

std::vector<at::Tensor> TrainingSnapshot::tensors() const {
  std::vector<at::Tensor> all;
  std::unordered_set<const void*> seen;
  const auto add = [&](const at::Tensor& t) {
    if (t.defined() && seen.insert(t.unsafeGetTensorImpl()).second) all.push_back(t);
  };
  for (const auto* optimizer : optimizers_) {
    for (const auto& group : optimizer->param_groups()) {
      for (const auto& parameter : group.params()) add(parameter);
    }
    visit_kind(*optimizer, [&](const auto& kind) {
      using State = typename std::decay_t<decltype(kind)>::State;
      // In the order of the parameters: that of the map may change.
      for (const auto& group : optimizer->param_groups()) {
        for (const auto& parameter : group.params()) {
          const auto found = optimizer->state().find(parameter.unsafeGetTensorImpl());
          if (found == optimizer->state().end()) continue;
          auto* state = dynamic_cast<State*>(found->second.get());
          TORCH_CHECK_NOT_IMPLEMENTED(state, "the optimizer keeps state of type ",
                                      c10::demangle(typeid(*found->second).name()), " where ",
                                      kind.name, " keeps its own");
          for_each_tensor(*state, [&](const char*, const at::Tensor& t, bool) { add(t); });
        }
      }
    });
  }
  for (const auto& buffer : buffers_of(model_)) add(buffer);
  return all;
}

int64_t TrainingSnapshot::bytes() const {
  int64_t sum = 0;
  for (const auto& t : tensors()) sum += static_cast<int64_t>(t.nbytes());
  return sum;
}

void TrainingSnapshot::take() {
  saved_.clear();  // a copy that fails half-way is none
  copies_.take(tensors());
  for (const auto* optimizer : optimizers_) {
    Saved saved;
    for (const auto& group : optimizer->param_groups()) {
      saved.options.push_back(group.options().clone());
    }
    for (const auto& [key, state] : optimizer->state()) {
      saved.states.emplace_back(key, state->clone());
    }
    saved_.push_back(std::move(saved));
  }
}

void TrainingSnapshot::put_back() {
  for (size_t i = 0; i < optimizers_.size(); ++i) {
    auto& groups = optimizers_[i]->param_groups();
    for (size_t g = 0; g < std::min(groups.size(), saved_[i].options.size()); ++g) {
      groups[g].set_options(saved_[i].options[g]->clone());
    }
    optimizers_[i]->state().clear();
    for (const auto& [key, state] : saved_[i].states) {
      optimizers_[i]->state()[key] = state->clone();
    }
  }
  copies_.put_back();
}

void TrainingSnapshot::drop() {
  copies_.drop();
  saved_.clear();
}

}  // namespace torchlore::detail
