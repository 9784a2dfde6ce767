#include "training_snapshot.hpp"

#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <unordered_set>

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
    for_each_state_tensor(*optimizer, add);
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
  // The tensors that the objects share with the optimizer are among the copies.
  for (auto* optimizer : optimizers_) saved_.emplace_back(*optimizer);
}

void TrainingSnapshot::put_back() {
  for (const auto& saved : saved_) saved.put_back();
  copies_.put_back();
}

void TrainingSnapshot::drop() {
  copies_.drop();
  saved_.clear();
}

}  // namespace torchlore::detail
