#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/core/TensorImpl.h>

namespace c10 {
class OperatorHandle;
}

namespace torchlore {
class OpHandler;
}

/// Tensors whose elements are computed when something asks for them.
namespace torchlore::intercept {

/// A tensor of known shape and dtype that has no memory yet.
///
/// Every op that takes one among its arguments comes to `answer`, on any thread, inside and outside
/// of modes: it carries a dispatch key for which there is a kernel for all ops. What `answer` does
/// not take runs with `value()` in its place. What goes around the dispatcher cannot read wrong
/// elements either: there is no memory to read, so `data_ptr` and `storage` throw; `variable_data`
/// and its likes are those of the value; and a gradient that autograd would take past the dispatcher
/// (through a custom function, say) is an error in backward.
class DeferredTensor : public c10::TensorImpl {
 public:
  ~DeferredTensor() override;

  /// The elements, as a tensor with memory: the same one at each call, and the one that ops in place
  /// write to.
  virtual at::Tensor value() = 0;
  /// Whose mode the tensor was made in. Modes around that one never see it as an argument.
  virtual const OpHandler* owner() const = 0;
  /// Takes an op that has this tensor as its first deferred argument, if it can: then the results are
  /// on the stack in place of the arguments. Called while the owner's mode is on.
  virtual bool answer(const c10::OperatorHandle& op, torch::jit::Stack& stack) = 0;

  /// Lets shape and strides be those of the value, after an op that may have changed them.
  void refresh();

  c10::intrusive_ptr<c10::TensorImpl> shallow_copy_and_detach(
      const c10::VariableVersion& version, bool allow_metadata_change) const override;
  c10::intrusive_ptr<c10::TensorImpl> shallow_copy_and_detach(
      c10::VariableVersion&& version, bool allow_metadata_change) const override;

 protected:
  /// A contiguous tensor of these sizes, of the device and the kind of `like`.
  DeferredTensor(const at::Tensor& like, at::IntArrayRef sizes, at::ScalarType dtype);
  const char* tensorimpl_type_name() const override { return "torchlore::DeferredTensor"; }
};

/// The deferred tensor that a tensor is, or nullptr.
DeferredTensor* as_deferred(const at::Tensor& tensor);

/// Makes autograd know that the tensor depends on what requires a gradient.
void require_gradient(const at::Tensor& deferred);

/// The first deferred tensor among an op's arguments, or nullptr. At no cost where there is none in
/// the process.
DeferredTensor* first_deferred(const c10::OperatorHandle& op, torch::jit::Stack& stack);

/// Runs the op with values in place of the deferred tensors among its arguments.
void run_with_values(const c10::OperatorHandle& op, torch::jit::Stack& stack);

}  // namespace torchlore::intercept
