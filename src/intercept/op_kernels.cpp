// The kernels that LibTorch's dispatcher calls for ops inside a mode.
//
// Two dispatch keys: a kernel of its own for each typed op at kTypedKey, where all other ops fall
// through at no cost, and one boxed kernel for everything at kBoxedKey, below it. The innermost
// frame that wants an op gets it, whichever key it came by.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/matmul_ops.h>
#include <ATen/ops/mm_ops.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <mutex>

#include "frame.hpp"
#include "torchlore/intercept/op_call.hpp"

namespace torchlore::intercept {
namespace {

constexpr auto kTypedKey = c10::DispatchKey::TESTING_ONLY_GenericMode;
constexpr auto kBoxedKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;
static_assert(kTypedKey > kBoxedKey, "the dispatcher must come to the typed kernels first");

thread_local const Frame* innermost = nullptr;

c10::DispatchKeySet below(c10::DispatchKeySet keys, c10::DispatchKey key) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, key);
}

/// The innermost frame that wants the op, by an override of its own or boxed.
const Frame* frame_for(HandledOps::Op op) {
  const Frame* frame = innermost;
  while (frame != nullptr &&
         !((frame->ops.has(op) || frame->ops.has(HandledOps::boxed)) && frame->callable())) {
    frame = frame->outer.get();
  }
  return frame;
}

/// The kernel of one typed op: `method` of the innermost frame that overrides it.
template <typename Op, HandledOps::Op op, auto method, typename Signature = typename Op::schema>
struct TypedKernel;

template <typename Op, HandledOps::Op op, auto method, typename Result, typename... Args>
struct TypedKernel<Op, op, method, Result(Args...)> {
  static Result call(c10::DispatchKeySet keys, Args... args) {
    const Frame* frame = frame_for(op);
    if (frame == nullptr || !frame->ops.has(op)) {
      return Op::redispatch(below(keys, kTypedKey), args...);  // to a boxed frame, or to the op
    }
    const FrameGuard around(frame->outer.get());
    return (frame->handler.*method)(args...);
  }

  static void add_to(torch::Library& library) {
    const std::string overload = Op::overload_name;
    const std::string name = overload.empty() ? Op::name : c10::str(Op::name, ".", overload);
    library.impl(name.c_str(), &call);
  }
};

void boxed_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack) {
  const Frame* frame = innermost;
  while (frame != nullptr && !(frame->ops.has(HandledOps::boxed) && frame->callable())) {
    frame = frame->outer.get();
  }
  if (frame == nullptr) {  // a thread that inherited the keys, but not the modes
    op.redispatchBoxed(below(keys, kBoxedKey), stack);
    return;
  }
  const FrameGuard around(frame->outer.get());
  OpCall call(op, keys, *stack, *frame);
  frame->handler.boxed(call);
}

void register_typed() {
  static torch::Library fallback(torch::Library::IMPL, "_", kTypedKey, __FILE__, __LINE__);
  fallback.fallback(torch::CppFunction::makeFallthrough());
  static torch::Library aten(torch::Library::IMPL, "aten", kTypedKey, __FILE__, __LINE__);
  namespace op = at::_ops;
  TypedKernel<op::addmm, HandledOps::addmm, &OpHandler::addmm>::add_to(aten);
  TypedKernel<op::mm, HandledOps::mm, &OpHandler::mm>::add_to(aten);
  TypedKernel<op::bmm, HandledOps::bmm, &OpHandler::bmm>::add_to(aten);
  TypedKernel<op::matmul, HandledOps::matmul, &OpHandler::matmul>::add_to(aten);
}

void register_boxed() {
  static torch::Library fallback(torch::Library::IMPL, "_", kBoxedKey, __FILE__, __LINE__);
  fallback.fallback(torch::CppFunction::makeFromBoxedFunction<&boxed_kernel>());
}

/// Says which key is taken; a second fallback at one key is an error of the dispatcher.
template <typename Register>
void register_at(c10::DispatchKey key, const Register& register_here) {
  try {
    register_here();
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "torchlore's OpMode needs the dispatch key ", key,
                ", but another library in this process has registered kernels there; "
                "use one of the two only. LibTorch said: ",
                error.what_without_backtrace());
  }
}

}  // namespace

const Frame* current_frame() { return innermost; }

void set_current_frame(const Frame* frame) {
  innermost = frame;
  c10::impl::tls_set_dispatch_key_included(kTypedKey, frame != nullptr && frame->any_typed);
  c10::impl::tls_set_dispatch_key_included(kBoxedKey, frame != nullptr && frame->any_boxed);
}

void register_kernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    register_at(kTypedKey, register_typed);
    register_at(kBoxedKey, register_boxed);
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
  const intercept::FrameGuard again(&frame_);
  op_.redispatchBoxed(intercept::below(keys_, intercept::kBoxedKey), &stack_);
}

bool OpCall::composite() const {
  return op_.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
}

}  // namespace torchlore
