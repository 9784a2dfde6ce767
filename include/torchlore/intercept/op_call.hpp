#pragma once

#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>

#include <string>

namespace c10 {
class OperatorHandle;
}

namespace torchlore {

namespace intercept {
struct Frame;
}

/// One op on its way, as `OpHandler::boxed` gets it: which op, and the stack that holds its
/// arguments and, once it ran, its results instead.
class OpCall {
 public:
  /// Made by `OpMode`.
  OpCall(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack& stack,
         const intercept::Frame& frame)
      : op_(op), keys_(keys), stack_(stack), frame_(frame) {}

  /// The op, with its schema; `<ATen/core/dispatch/Dispatcher.h>` declares it.
  const c10::OperatorHandle& op() const { return op_; }
  /// The op's name and overload, such as "aten::addmm" and "aten::softmax.int".
  std::string name() const;
  /// The arguments, last ones of the stack, in the schema's order; once the op ran, its results.
  torch::jit::Stack& stack() { return stack_; }

  /// Runs the op: it takes its arguments from the stack and leaves its results there.
  void run();
  /// The same, with the handler's mode on again for the ops that a composite op is made of: they
  /// come to the handler one by one. For an op that is not composite it is `run`.
  void run_parts();
  /// Hands the op on to autocast and autograd with the handler's mode on. Where autocast casts for
  /// it, the casts come to the handler, and then the op again with its new arguments.
  void pass_on();
  /// Whether the op is made of other ops (has a CompositeImplicitAutograd kernel).
  bool composite() const;

 private:
  const c10::OperatorHandle& op_;
  c10::DispatchKeySet keys_;
  torch::jit::Stack& stack_;
  const intercept::Frame& frame_;
};

}  // namespace torchlore
