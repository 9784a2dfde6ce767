#include "deferred_tensor.hpp"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>
#include <utility>
#include <vector>

#include "autograd_node.hpp"
#include "frame.hpp"

namespace torchlore::intercept {
namespace {

/// How many there are in the process.
std::atomic<int64_t> alive = 0;

constexpr const char* kNoMemory =
    "this tensor has not been computed: inside a SparseAttentionScope the scores and weights of an "
    "attention are computed only when an op asks for them; take its .clone() first";

/// Calls `visit` with each deferred tensor of a value, by reference where it can be replaced.
template <typename Visit>
void visit_deferred(c10::IValue& value, const Visit& visit) {
  if (value.isTensor()) {
    if (auto* deferred = as_deferred(value.toTensor())) visit(*deferred, value);
  } else if (value.isList()) {
    auto list = value.toList();
    for (size_t i = 0; i < list.size(); ++i) {
      c10::IValue element = list.get(i);
      if (!element.isTensor()) break;
      auto* deferred = as_deferred(element.toTensor());
      if (deferred == nullptr) continue;
      visit(*deferred, element);
      list.set(i, element);
    }
  }
}

/// The op's arguments: the last values of the stack.
c10::IValue* arguments_of(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  return stack.data() + (stack.size() - op.schema().arguments().size());
}

}  // namespace

DeferredTensor::DeferredTensor(const at::Tensor& like, at::IntArrayRef sizes, at::ScalarType dtype)
    : TensorImpl(like.key_set().add(kBoxedKey), c10::scalarTypeToTypeMeta(dtype), like.device()) {
  set_sizes_contiguous(sizes);
  release_storage_and_set_meta_custom_data_ptr_error_msg_(kNoMemory);
  alive.fetch_add(1, std::memory_order_relaxed);
}

DeferredTensor::~DeferredTensor() { alive.fetch_sub(1, std::memory_order_relaxed); }

void DeferredTensor::refresh() {
  const auto now = value();
  set_sizes_and_strides(now.sizes(), now.strides());
}

c10::intrusive_ptr<c10::TensorImpl> DeferredTensor::shallow_copy_and_detach(
    const c10::VariableVersion& version, bool allow_metadata_change) const {
  const auto now = const_cast<DeferredTensor*>(this)->value();
  return now.unsafeGetTensorImpl()->shallow_copy_and_detach(version, allow_metadata_change);
}

c10::intrusive_ptr<c10::TensorImpl> DeferredTensor::shallow_copy_and_detach(
    c10::VariableVersion&& version, bool allow_metadata_change) const {
  const auto now = const_cast<DeferredTensor*>(this)->value();
  return now.unsafeGetTensorImpl()->shallow_copy_and_detach(std::move(version),
                                                            allow_metadata_change);
}

DeferredTensor* as_deferred(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  return impl->key_set().has(kBoxedKey) ? dynamic_cast<DeferredTensor*>(impl) : nullptr;
}

void require_gradient(const at::Tensor& deferred) {
  auto node = detail::make_node<torch::autograd::Error>(
      "a gradient came to the scores or weights of an attention inside a SparseAttentionScope "
      "through code that goes around LibTorch's dispatcher; give that code their .clone()",
      torch::autograd::edge_list());
  node->add_input_metadata(deferred);
  torch::autograd::impl::set_gradient_edge(deferred, torch::autograd::Edge(std::move(node), 0));
}

DeferredTensor* first_deferred(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  if (alive.load(std::memory_order_relaxed) == 0) return nullptr;
  DeferredTensor* first = nullptr;
  auto* argument = arguments_of(op, stack);
  for (; argument != stack.data() + stack.size() && first == nullptr; ++argument) {
    visit_deferred(*argument, [&](DeferredTensor& deferred, c10::IValue& /*place*/) {
      if (first == nullptr) first = &deferred;
    });
  }
  return first;
}

void run_with_values(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  std::vector<at::Tensor> deferred_ones;  // held: the stack gives them up
  auto* argument = arguments_of(op, stack);
  for (; argument != stack.data() + stack.size(); ++argument) {
    // A list may be the caller's own.
    if (argument->isList()) *argument = argument->toList().copy();
    visit_deferred(*argument, [&](DeferredTensor& deferred, c10::IValue& place) {
      deferred_ones.push_back(place.toTensor());
      place = deferred.value();
    });
  }
  op.callBoxed(&stack);
  for (const auto& tensor : deferred_ones) as_deferred(tensor)->refresh();
}

}  // namespace torchlore::intercept
