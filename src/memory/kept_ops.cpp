#include "kept_ops.hpp"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <utility>

namespace torchlore::memory {
namespace {

/// Below autograd, above the backends; LibTorch has it for a mode of its own that is seldom used.
constexpr auto kKey = c10::DispatchKey::Fake;

thread_local KeptOps* active = nullptr;
thread_local bool replaying = false;

c10::DispatchKeySet below(c10::DispatchKeySet keys) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kKey);
}

/// Whether giving back what an op gave before is the same as running it: it returns new tensors,
/// changes nothing and draws no random numbers.
bool can_be_kept(const c10::OperatorHandle& op) {
  const auto& schema = op.schema();
  return !schema.is_mutable() && !schema.returns().empty() &&
         !op.hasTag(at::Tag::nondeterministic_seeded) &&
         std::all_of(schema.returns().begin(), schema.returns().end(), [](const auto& result) {
           return result.alias_info() == nullptr &&
                  result.type()->kind() == c10::TypeKind::TensorType;
         });
}

}  // namespace

void run_kept_op(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                 torch::jit::Stack* stack) {
  using Kind = KeptOps::Kind;
  auto* const ops = active;
  const auto kind = ops == nullptr ? Kind::pass_on : ops->kind_of(op);
  if (kind == Kind::keep) {
    replaying ? ops->replay(op, keys, *stack) : ops->record(op, keys, *stack);
    return;
  }
  if (kind == Kind::changes_arguments && !replaying) ops->give_up_written(op, *stack);
  op.redispatchBoxed(below(keys), stack);
}

namespace {

void register_kernel() {
  static std::once_flag once;
  std::call_once(once, [] {
    auto& dispatcher = c10::Dispatcher::singleton();
    TORCH_CHECK(!dispatcher.hasBackendFallbackForDispatchKey(kKey) &&
                    dispatcher.getRegistrationsForDispatchKey(kKey).empty(),
                "checkpoint's option keep needs the dispatch key ", kKey,
                ", but another library in this process has registered kernels there; use one of "
                "the two only");
    static torch::Library fallback(torch::Library::IMPL, "_", kKey, __FILE__, __LINE__);
    fallback.fallback(torch::CppFunction::makeFromBoxedFunction<&run_kept_op>());
  });
}

void set_active(KeptOps* ops, bool replay) {
  active = ops;
  replaying = replay;
  c10::impl::tls_set_dispatch_key_included(kKey, ops != nullptr);
}

}  // namespace

KeptOps::KeptOps(Policy policy) : policy_(std::move(policy)) { register_kernel(); }

KeptOps::Scope::Scope(KeptOps* ops, bool replay)
    : ops_(ops), previous_(active), previous_replay_(replaying) {
  if (ops != nullptr) ops->next_ = 0;
  if (ops != active || replay != replaying) set_active(ops, replay);
}

KeptOps::Scope::~Scope() {
  if (ops_ != nullptr && replaying) ops_->release();
  if (active != previous_ || replaying != previous_replay_) set_active(previous_, previous_replay_);
}

KeptOps::Kind KeptOps::kind_of(const c10::OperatorHandle& op) {
  const auto [found, added] = kinds_.try_emplace(op.operator_name(), Kind::pass_on);
  if (added) {
    const auto& name = op.operator_name();
    const auto text = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    if (op.schema().is_mutable()) {
      found->second = Kind::changes_arguments;
    } else if (can_be_kept(op) && policy_(text)) {
      found->second = Kind::keep;
    }
  }
  return found->second;
}

void KeptOps::record(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                     torch::jit::Stack& stack) {
  {
    const Scope parts(nullptr, false);  // what the op calls inside is part of it
    op.redispatchBoxed(below(keys), &stack);
  }
  Call call{op.operator_name(), {}, {}};
  for (const auto& value : torch::jit::last(stack, op.schema().returns().size())) {
    const auto& result = value.toTensor();
    // Autograd will hang its graph on the result itself.
    call.results.push_back(result.defined() ? result.tensor_data() : result);
    if (result.defined() && result.has_storage()) {
      call_of_[result.storage().unsafeGetStorageImpl()] = calls_.size();
    }
  }
  calls_.push_back(std::move(call));
}

void KeptOps::give_up(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  const auto found = call_of_.find(tensor.storage().unsafeGetStorageImpl());
  if (found == call_of_.end()) return;
  auto& call = calls_[found->second];
  for (const auto& result : call.results) {
    if (result.defined() && result.has_storage()) {
      call_of_.erase(result.storage().unsafeGetStorageImpl());
    }
  }
  call.results.clear();
}

// Not by versions: a reshaped result (`_unsafe_view`) has a version counter of its own.
void KeptOps::give_up_written(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = arguments[i].alias_info();
    if (alias == nullptr || !alias->isWrite()) continue;
    const auto& value = torch::jit::peek(stack, i, arguments.size());
    if (value.isTensor()) give_up(value.toTensor());
    if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) give_up(tensor);
    }
  }
}

void KeptOps::save(const std::vector<at::Tensor>& outputs) {
  for (const auto& output : outputs) give_up(output);
  call_of_.clear();
  for (auto& call : calls_) {
    for (const auto& result : std::exchange(call.results, {})) {
      call.packed.push_back(result.defined() ? SavedTensorScope::save(result) : nullptr);
    }
  }
}

void KeptOps::unpack() {
  for (auto& call : calls_) {
    call.results.clear();
    for (const auto& packed : call.packed) {
      call.results.push_back(packed ? packed->unpack() : at::Tensor());
    }
  }
}

void KeptOps::release() {
  for (auto& call : calls_) call.results.clear();
}

void KeptOps::replay(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                     torch::jit::Stack& stack) {
  const size_t index = next_++;
  TORCH_CHECK(index < calls_.size() && calls_[index].op == op.operator_name(),
              "a checkpointed block calls ", op.operator_name(), " when it is recomputed, where ",
              index < calls_.size() ? c10::str("the forward pass called ", calls_[index].op)
                                    : std::string("the forward pass called nothing more"),
              ". The block must do the same again: let it depend on nothing that changes before "
              "backward");
  auto& call = calls_[index];
  if (call.results.empty()) {
    const Scope parts(nullptr, false);
    op.redispatchBoxed(below(keys), &stack);
    return;
  }
  torch::jit::drop(stack, op.schema().arguments().size());
  for (const auto& result : std::exchange(call.results, {})) {
    stack.emplace_back(result.defined() ? result.variable_data() : result);
  }
}

}  // namespace torchlore::memory
