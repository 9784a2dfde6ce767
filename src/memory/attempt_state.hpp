#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../core/optimizer_objects.hpp"
#include "torchlore/core/bytes.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/core/rng.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace torchlore::memory {

/// What an attempt may change, as it was before it: random generators, gradients, values, optimizers.
class AttemptState {
 public:
  /// The random generators.
  AttemptState();
  ~AttemptState();
  AttemptState(AttemptState&&) noexcept;
  AttemptState& operator=(AttemptState&&) noexcept;

  /// Their gradients too. What is undefined costs nothing.
  void add_gradients(const ParameterView& parameters);
  /// Its buffers too.
  void add_buffers(const torch::nn::Module& module);
  /// Its gradients and buffers too.
  void add_module(const torch::nn::Module& module);
  /// Its parameters, their gradients, its state and its options too.
  /// @throws c10::NotImplementedError for an optimizer of unknown kind.
  void add_optimizer(torch::optim::Optimizer& optimizer);
  /// The values of a tensor too.
  void add_value(const at::Tensor& tensor);

  /// Puts everything back; can be called again. Allocates no tensors: memory may have run out.
  void restore();

  /// What it would put back, as it is now: gradients, values, generators. To look at, not to keep.
  std::vector<at::Tensor> current() const;
  /// What an element of `current` is.
  std::string name_of(size_t index) const;

  /// What the copies take.
  Bytes bytes() const { return bytes_; }

 private:
  struct Gradient {
    at::Tensor parameter;
    at::Tensor gradient;  // the tensor itself, and what it held; both undefined if there was none
    at::Tensor values;
  };

  at::Tensor copy_of(const at::Tensor& tensor);

  RngState rng_;
  std::vector<Gradient> gradients_;
  std::vector<std::pair<at::Tensor, at::Tensor>> values_;  // a tensor, and what it held
  std::vector<detail::OptimizerObjects> optimizers_;
  std::unordered_set<const void*> seen_gradients_;  // of these parameters
  std::unordered_set<const void*> seen_values_;
  Bytes bytes_;
};

}  // namespace torchlore::memory
