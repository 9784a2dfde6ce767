#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "../core/optimizer_objects.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace torchlore::detail {

/// Copies of tensors, to put back in place. Memory is allocated by the first `take`, and again only
/// when other tensors are given.
class TensorCopies {
 public:
  explicit TensorCopies(bool on_host = false) : on_host_(on_host) {}
  void take(const std::vector<at::Tensor>& tensors);
  void put_back() const;
  void drop();

 private:
  bool on_host_;
  std::vector<at::Tensor> tensors_;
  std::vector<at::Tensor> copies_;
};

/// Parameters, state and options of optimizers, and the buffers of a model.
class TrainingSnapshot {
 public:
  /// @throws c10::NotImplementedError for an optimizer of unknown kind.
  TrainingSnapshot(std::vector<torch::optim::Optimizer*> optimizers, const torch::nn::Module* model,
                   bool on_host);
  ~TrainingSnapshot();

  void take();
  /// Puts everything back, into the same tensors. There must be a snapshot.
  void put_back();
  bool taken() const { return !saved_.empty(); }
  void drop();

  /// What a snapshot takes now.
  int64_t bytes() const;

 private:
  std::vector<at::Tensor> tensors() const;

  std::vector<torch::optim::Optimizer*> optimizers_;
  const torch::nn::Module* model_;
  TensorCopies copies_;
  std::vector<OptimizerObjects> saved_;  // one per optimizer, once taken
};

/// The buffers of a model that hold something.
std::vector<at::Tensor> buffers_of(const torch::nn::Module* model);

}  // namespace torchlore::detail
