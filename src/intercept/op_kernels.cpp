// What LibTorch's dispatcher calls for ops inside a mode, and how it comes to do so.
//
// Two dispatch keys: a kernel of its own for each typed op at kTypedKey, where all other ops fall
// through at no cost (op_typed_kernels.cpp), and one boxed kernel for everything at kBoxedKey, below
// it. The innermost frame that wants an op gets it, whichever key it came by.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <mutex>

#include "deferred_tensor.hpp"
#include "frame.hpp"
#include "torchlore/intercept/op_call.hpp"

namespace torchlore::intercept {

constinit thread_local const Frame* innermost = nullptr;

namespace {

/// Whether the chain from `frame` outwards comes to the mode of `handler`.
bool comes_to(const Frame* frame, const OpHandler* handler) {
  while (frame != nullptr && &frame->handler != handler) frame = frame->outer.get();
  return frame != nullptr && frame->callable();
}

/// Runs an op with a deferred tensor among its arguments, unless a mode inside its owner's is to see
/// the op first. Modes around the owner's see what the owner makes of it.
bool run_deferred(const c10::OperatorHandle& op, torch::jit::Stack& stack,
                  DeferredTensor& deferred) {
  const bool active = comes_to(innermost, deferred.owner());
  const Frame* frame = innermost;
  while (active && &frame->handler != deferred.owner()) {
    if (frame->wants(HandledOps::boxed)) return false;
    frame = frame->outer.get();
  }
  if (!active) {
    run_with_values(op, stack);
    return true;
  }
  const at::Tensor held(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(&deferred));
  bool answered = false;
  {
    const FrameGuard around(frame->outer.get());
    answered = deferred.answer(op, stack);
  }
  if (!answered) run_with_values(op, stack);
  return true;
}

void boxed_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack) {
  if (auto* deferred = first_deferred(op, *stack)) {
    if (run_deferred(op, *stack, *deferred)) return;
  }
  const Frame* frame = innermost;
  while (frame != nullptr && !frame->wants(HandledOps::boxed)) frame = frame->outer.get();
  if (frame == nullptr) {  // a thread that was given the keys, but not the modes
    op.redispatchBoxed(below(keys, kBoxedKey), stack);
    return;
  }
  const FrameGuard around(frame->outer.get());
  OpCall call(op, keys, *stack, *frame);
  frame->handler.boxed(call);
}

void register_boxed_kernel() {
  static torch::Library fallback(torch::Library::IMPL, "_", kBoxedKey, __FILE__, __LINE__);
  fallback.fallback(torch::CppFunction::makeFromBoxedFunction<&boxed_kernel>());
}

void check_free(c10::DispatchKey key) {
  auto& dispatcher = c10::Dispatcher::singleton();
  TORCH_CHECK(!dispatcher.hasBackendFallbackForDispatchKey(key) &&
                  dispatcher.getRegistrationsForDispatchKey(key).empty(),
              "torchlore's OpMode needs the dispatch key ", key,
              ", but another library in this process has registered kernels there; use one of the "
              "two only");
}

}  // namespace

void register_kernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    check_free(kTypedKey);
    check_free(kBoxedKey);
    register_typed_kernels();
    register_boxed_kernel();
  });
}

}  // namespace torchlore::intercept

namespace torchlore {

std::string OpCall::name() const {
  const auto& name = op_.operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

void OpCall::run() { op_.callBoxed(stack_); }

void OpCall::run_parts() {
  if (composite()) return pass_on();
  run();
}

void OpCall::pass_on() {
  // Below the kernel for all ops nobody knows deferred tensors; parts of composite ops come again.
  if (intercept::first_deferred(op_, stack_) != nullptr && !composite()) return run();
  const intercept::FrameGuard again(&frame_);
  op_.redispatchBoxed(intercept::below(keys_, intercept::kBoxedKey), &stack_);
}

bool OpCall::composite() const {
  return op_.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
}

}  // namespace torchlore
