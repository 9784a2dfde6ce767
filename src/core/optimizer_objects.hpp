#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace torch::optim {
class Optimizer;
class OptimizerOptions;
class OptimizerParamState;
}  // namespace torch::optim

namespace torchlore::detail {

/// The options and the states of an optimizer as objects, to put back. The tensors of a state are
/// shared, not copied: who needs their values keeps them too, by `for_each_state_tensor`.
class OptimizerObjects {
 public:
  explicit OptimizerObjects(torch::optim::Optimizer& optimizer);
  ~OptimizerObjects();
  OptimizerObjects(OptimizerObjects&&) noexcept;
  OptimizerObjects& operator=(OptimizerObjects&&) noexcept;

  /// Can be called again. Groups that were added since keep their options. Allocates no tensors.
  void put_back() const;

 private:
  torch::optim::Optimizer* optimizer_;
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> options_;
  std::vector<std::pair<void*, std::unique_ptr<torch::optim::OptimizerParamState>>> states_;
};

/// Calls `f` for the tensors of an optimizer's state, in the order of its parameters; for undefined
/// ones too.
/// @throws c10::NotImplementedError for an optimizer, or a state, of unknown kind.
void for_each_state_tensor(const torch::optim::Optimizer& optimizer,
                           const std::function<void(const at::Tensor&)>& f);

}  // namespace torchlore::detail
