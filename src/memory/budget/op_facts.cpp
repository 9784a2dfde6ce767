#include "op_facts.hpp"

#include <ATen/core/Tensor.h>
#include <c10/util/flat_hash_map.h>

#include <memory>

namespace torchlore::budget {
namespace {

bool is_write(const c10::AliasInfo* alias) { return alias != nullptr && alias->isWrite(); }

/// Tensor, Tensor?, Tensor[] and Tensor?[].
bool may_hold_tensors(const std::string& type) { return type.find("Tensor") != std::string::npos; }

/// Every result is a view of an argument: no bytes of its own.
bool returns_views(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    const auto* alias = result.alias_info();
    if (alias == nullptr || alias->isWrite()) return false;
  }
  return true;
}

bool returns_tensors(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    if (may_hold_tensors(result.type()->str())) return true;
  }
  return false;
}

c10::DispatchKeySet autocast_kernels(const c10::OperatorHandle& op) {
  using c10::DispatchKey;
  c10::DispatchKeySet found;
  for (const auto key :
       {DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA, DispatchKey::AutocastXPU,
        DispatchKey::AutocastMPS, DispatchKey::AutocastMTIA, DispatchKey::AutocastPrivateUse1}) {
    if (op.hasKernelForDispatchKey(key)) found = found.add(key);
  }
  return found;
}

}  // namespace

OpFacts::OpFacts(const c10::OperatorHandle& handle) : op(handle) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  arguments = schema.arguments().size();
  results = schema.returns().size();
  composite = op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
  autocast = autocast_kernels(op);
  random = op.hasTag(at::Tag::nondeterministic_seeded);
  // Batch norms update running statistics, which most of their schemas do not say.
  const bool norm = name.find("batch_norm") != std::string::npos;
  for (size_t i = 0; i < arguments; ++i) {
    const auto& argument = schema.arguments()[i];
    const auto type = argument.type()->str();
    const bool written = is_write(argument.alias_info());
    writes |= written;
    random |= type.find("Generator") != std::string::npos;
    if (norm && argument.name().starts_with("train"))
      training_argument = static_cast<std::ptrdiff_t>(i);
    if (argument.name() == "dropout_state") state_argument = static_cast<std::ptrdiff_t>(i);
    if (!may_hold_tensors(type)) continue;
    tensors.push_back({.index = i,
                       .written = written,
                       .optional = type == "Tensor?[]",
                       .statistics = norm && argument.name().starts_with("running_")});
  }
  makes_bytes = writes || (returns_tensors(schema) && !returns_views(schema));
  aten = name.starts_with("aten::");
  known = aten || name.starts_with("mkldnn::") || name.starts_with("prims::") ||
          name.starts_with("torchlore::");
}

const OpFacts& OpFacts::of(const c10::OperatorHandle& handle) {
  // Per thread, so that a look-up takes no lock.
  thread_local ska::flat_hash_map<const c10::FunctionSchema*, std::unique_ptr<OpFacts>> cache;
  auto& facts = cache[&handle.schema()];
  // An op of an unloaded library may have left its address to another.
  if (facts == nullptr || (!facts->known && facts->op.operator_name() != handle.operator_name())) {
    facts = std::make_unique<OpFacts>(handle);
  }
  return *facts;
}

}  // namespace torchlore::budget
