#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
class OptimizerParamGroup;
}  // namespace torch::optim

namespace torchlore {

/// A light view of parameters, whatever holds them: tensors, a module, an optimizer or one of its
/// groups. Every function of torchlore that takes "parameters" takes this.
///
/// The view does not own what it was made from; like `at::TensorList` it is meant to be passed, not
/// kept. A module's parameters are listed once, when the view is made (tied parameters appear
/// once).
///
/// ```cpp
/// torchlore::clip_grad_norm_(model->parameters(), 1.0);
/// torchlore::clip_grad_norm_(*model, 1.0);
/// torchlore::clip_grad_norm_(optimizer, 1.0);
/// ```
class ParameterView {
 public:
  /// The tensors of a list, which must outlive the view.
  ParameterView(at::TensorList tensors) : groups_{tensors} {}
  /// The tensors of a vector, which must outlive the view.
  ParameterView(const std::vector<at::Tensor>& tensors) : groups_{tensors} {}
  /// The tensors of a temporary vector, which the view keeps.
  ParameterView(std::vector<at::Tensor>&& tensors) : owned_(std::move(tensors)), groups_{owned_} {}
  /// The tensors named, which the view keeps.
  ParameterView(std::initializer_list<at::Tensor> tensors)
      : ParameterView(std::vector<at::Tensor>(tensors)) {}
  /// One tensor, which must outlive the view.
  ParameterView(const at::Tensor& tensor) : groups_{at::TensorList(tensor)} {}
  /// All parameters of the module and its submodules, each once.
  ParameterView(const torch::nn::Module& module);
  /// The parameters of one group.
  ParameterView(const torch::optim::OptimizerParamGroup& group);
  /// All groups of the optimizer, in order.
  ParameterView(const torch::optim::Optimizer& optimizer);

  ParameterView(const ParameterView&) = delete;
  ParameterView& operator=(const ParameterView&) = delete;
  ParameterView(ParameterView&&) noexcept = default;  // a moved vector keeps its elements' address
  ParameterView& operator=(ParameterView&&) noexcept = default;
  ~ParameterView() = default;

  /// The parameters, one list per group (a single list unless made from an optimizer).
  const std::vector<at::TensorList>& groups() const { return groups_; }

  /// Number of parameter tensors in all groups.
  size_t size() const;
  /// Whether there is no parameter at all.
  bool empty() const { return size() == 0; }

  /// Calls `f(parameter)` for each parameter of all groups, in order.
  template <typename F>
  void for_each(F&& f) const {
    for (const auto& group : groups_) {
      for (const auto& tensor : group) f(tensor);
    }
  }

 private:
  std::vector<at::Tensor> owned_;
  std::vector<at::TensorList> groups_;
};

/// The gradients that are there, in order: parameters without one are left out.
/// @throws c10::ValueError if the view holds no parameter at all.
std::vector<at::Tensor> gradients(const ParameterView& parameters);

/// The parameters that go by these names, or lie in the submodules that do: {"head"} gives
/// `head.weight` and `head.bias`.
/// @throws c10::ValueError for a name that nothing goes by, with the names that there are.
std::vector<at::Tensor> parameters_named(const torch::nn::Module& module,
                                         const std::vector<std::string>& names);

}  // namespace torchlore
