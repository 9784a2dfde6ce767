#include "draft.hpp"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "../../intercept/frame.hpp"
#include "each_tensor.hpp"
#include "hand_writes.hpp"

namespace torchlore::budget {
namespace {

namespace impl = torch::autograd::impl;

bool is_true(const c10::IValue& value) { return value.isBool() && value.toBool(); }

uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
}

}  // namespace

Draft::Draft(Store& store, const OpFacts& facts, const torch::jit::Stack& stack, bool trusted,
             bool saves_seen)
    : store_(store), record_(new Record(store)), trusted_(trusted), saves_seen_(saves_seen) {
  record_->facts = &facts;
  note_surroundings();
  add_arguments(stack);
  if (at::autocast::is_autocast_enabled(record_->device)) {
    record_->autocast = at::autocast::get_autocast_dtype(record_->device);
  }
}

/// Notes what an op depends on beside its arguments.
void Draft::note_surroundings() {
  Record& record = *record_;
  record.keys = c10::impl::tls_local_dispatch_key_set();
  record.keys.included_ =
      record.keys.included_ - c10::DispatchKeySet({intercept::kTypedKey, intercept::kBoxedKey});
  record.grad_mode = at::GradMode::is_enabled();
  if (!record.facts->random) return;
  record.random = std::make_unique<RandomState>();
  record.random->add(c10::kCPU);
}

void Draft::add_arguments(const torch::jit::Stack& stack) {
  const OpFacts& facts = *record_->facts;
  const c10::IValue* first = stack.data() + (stack.size() - facts.arguments);
  if (facts.training_argument >= 0) trains_ = is_true(first[facts.training_argument]);
  // cuDNN draws its dropout masks from a state of its own, which the op changes without saying so.
  if (facts.state_argument >= 0 && !first[facts.state_argument].isNone()) replayable_ = false;
  auto tensors = facts.tensors.begin();
  for (size_t i = 0; i < facts.arguments; ++i) {
    if (tensors == facts.tensors.end() || tensors->index != i) {
      record_->arguments.push_back(first[i]);
      if (facts.random) add_generators(record_->arguments.back());
      continue;
    }
    // Of tensors the arguments keep nothing, of a list of them its length.
    auto& kept = record_->arguments.emplace_back();
    if (first[i].isList()) kept = static_cast<int64_t>(first[i].toListRef().size());
    each_tensor(first[i], [&](const at::Tensor& tensor, int32_t element) {
      add_input(*tensors, element, tensor);
    });
    ++tensors;
  }
}

/// Notes the state of the generator that an argument stands for.
void Draft::add_generators(c10::IValue& argument) {
  if (argument.isDevice()) record_->random->add(argument.toDevice());
  if (argument.isGenerator()) argument = argument.toGenerator().clone();  // the user's own
}

void Draft::add_input(const TensorArgument& argument, int32_t element, const at::Tensor& tensor) {
  auto& input = record_->inputs.emplace_back();
  input.argument = static_cast<uint32_t>(argument.index);
  input.element = element;
  input.written = argument.written;
  input.requires_grad = tensor.requires_grad();
  // Of a dual tensor the op saves more, and a replay would have to make the tangent too.
  if (tensor._fw_grad(/*level=*/0).defined()) replayable_ = false;
  const auto device = tensor.device();
  if (!device.is_cpu()) record_->device = device.type();
  if (record_->random && !device.is_cpu()) record_->random->add(device);
  if (!is_plain(tensor)) {
    const at::NoGradGuard no_grad;
    input.other = tensor.detach();
    input.other_version = version_of(tensor);
    if (input.written) replayable_ = false;
    return;
  }
  input.view = TensorView(tensor);
  if (argument.statistics && trains_) {
    add_statistics(tensor);
    return;
  }
  input.value = ValueRef(&value_of(tensor));
  if (input.written) add_write(tensor);
}

Value& Draft::value_of(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  if (Value* value = known(storage.unsafeGetStorageImpl())) return *value;
  auto& value = store_.read(storage, impl::version_counter(tensor));
  known_.push_back({storage.unsafeGetStorageImpl(), ValueRef(&value)});
  return value;
}

/// A running statistic that a norm updates. What it was does not matter to the norm's results, so a
/// replay gets bytes of its own to play with.
void Draft::add_statistics(const at::Tensor& tensor) {
  auto& input = record_->inputs.back();
  input.statistics_bytes = static_cast<int64_t>(tensor.storage().nbytes());
  Value& value = value_of(tensor);
  // A norm that ran in evaluation mode before needs the old ones.
  const auto ours = value.saver_count + 2;  // the table of names, and known_
  if (value.pinned && value.record->references > ours) store_.snapshot(value);
  writes_.push_back({tensor, tensor.storage().unsafeGetStorageImpl(), ValueRef(&value), nullptr,
                     record_->inputs.size() - 1, true});
}

/// Sees to the bytes that the op is about to overwrite.
void Draft::add_write(const at::Tensor& tensor) {
  Value& value = *record_->inputs.back().value;
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  for (const auto& write : writes_) {
    if (write.storage == storage) return;
  }
  writes_.push_back({tensor, storage, ValueRef(&value), nullptr, record_->inputs.size() - 1});
  if (value.pinned) {
    // Bytes that no op made are lost now. Ops that read them before need a copy to be replayed; if
    // there are none a copy would be for this op alone, and its result is pinned instead.
    const auto own = std::count_if(record_->inputs.begin(), record_->inputs.end(),
                                   [&](const Input& in) { return in.value.get() == &value; });
    const auto read_before = [&] { return value.record->references > own + 3; };
    if (read_before()) store_.names().prune();  // most readers may be of a step long done
    if (read_before()) {
      store_.snapshot(value);
    } else {
      replayable_ = false;
    }
  }
  store_.retire(value, storage);
}

void Draft::save(Saved& saved, const c10::Storage& storage) {
  saved.pending = storage;
  const auto other =
      std::find_if(saves_.begin(), saves_.end(), [](auto* s) { return s != nullptr; });
  if (other != saves_.end()) saved.join(**other);
  saves_.push_back(&saved);
}

void Draft::forget(const Saved& saved) {
  std::replace(saves_.begin(), saves_.end(), const_cast<Saved*>(&saved),
               static_cast<Saved*>(nullptr));
}

Value* Draft::known(const c10::StorageImpl* storage) const {
  for (const auto& entry : known_) {
    if (entry.storage == storage) return entry.value.get();
  }
  return nullptr;
}

Value& Draft::make(Slot slot, size_t index, const c10::Storage& storage,
                   const c10::VariableVersion& counter) {
  auto& value = store_.add(*record_, slot, index, storage, counter);
  value.pinned = !replayable_ || (slot == Slot::saved && !saves_seen_);
  if (!value.pinned) value.marked = mark_storage(*storage.unsafeGetStorageImpl());
  known_.push_back({storage.unsafeGetStorageImpl(), ValueRef(&value)});
  return value;
}

void Draft::finish(const torch::jit::Stack& stack, uint64_t sequence, double clock,
                   double seconds) {
  Record& record = *record_;
  record.sequence = sequence;
  record.seconds = seconds;
  record.finished = clock;
  if (saves_seen_) record.saves = static_cast<int64_t>(saves_.size());
  // Kernels that read through pointers which could write took the mark of hand writes away.
  for (const auto& entry : known_) {
    if (trusted_ && entry.value->marked && entry.value->current) {
      mark_storage(const_cast<c10::StorageImpl&>(*entry.storage));
      if (entry.value->watch) entry.value->watch->forget();
    }
  }
  finish_writes();
  finish_results(stack);
  finish_saves();
  bool recorded = false;
  record.each_value([&](const Value& value) { recorded |= !value.pinned; });
  if (recorded) {
    ++store_.stats().records;
  } else {
    record.inputs.clear();  // never needed: nothing of it can be computed again
  }
}

void Draft::finish_writes() {
  for (auto& write : writes_) {
    const auto& storage = write.tensor.storage();
    if (storage.unsafeGetStorageImpl() != write.storage) continue;  // set_ gave it another
    const auto& counter = impl::version_counter(write.tensor);
    Value& before = *write.before;
    if (write.statistics) {
      store_.retire(before, write.storage);
      write.after = &store_.add_outside(storage, counter);
    } else {
      write.after = &make(Slot::argument, write.input, storage, counter);
      write.after->outside = write.after->pinned && before.outside;
    }
    store_.follow(before, *write.after, storage);
    for (auto& entry : known_) {
      if (entry.storage == write.storage) entry.value = ValueRef(write.after);
    }
  }
}

void Draft::finish_results(const torch::jit::Stack& stack) {
  size_t k = 0;
  for (size_t i = stack.size() - record_->facts->results; i < stack.size(); ++i) {
    each_tensor(stack[i], [&](const at::Tensor& tensor, int32_t) {
      const size_t index = k++;
      if (!is_plain(tensor)) return;
      const auto& storage = tensor.storage();
      if (known(storage.unsafeGetStorageImpl()) != nullptr) return;  // an argument, or a view
      if (store_.find(storage.unsafeGetStorageImpl()) != nullptr) return;
      make(Slot::output, index, storage, impl::version_counter(tensor));
    });
  }
}

Value& Draft::saved_value(const Saved& saved, size_t index, const c10::Storage& storage) {
  auto* const impl = storage.unsafeGetStorageImpl();
  for (const auto& write : writes_) {
    // A plain run would see the last bytes, or refuse if its own version says so; the old ones are
    // at hand here.
    if (write.storage == impl && write.after != nullptr) {
      return saved.unchanged() ? *write.after : *write.before;
    }
  }
  if (Value* value = known(impl)) return *value;
  if (Value* value = store_.find(impl)) return *value;
  return make(Slot::saved, index, storage, saved.version);
}

void Draft::finish_saves() {
  int64_t together = 0;
  c10::SmallVector<const Value*, 4> counted;
  for (size_t i = 0; i < saves_.size(); ++i) {
    if (saves_[i] == nullptr) continue;
    Saved& saved = *saves_[i];
    saved.group = record_->sequence;
    saved.saved_at = record_->finished;
    if (!saved.pending) continue;
    const auto storage = std::move(saved.pending);
    saved.pending = c10::Storage();
    Value& value = saved_value(saved, i, storage);
    store_.attach(saved, value, storage);
    if (value.pinned || std::count(counted.begin(), counted.end(), &value) > 0) continue;
    counted.push_back(&value);
    together += value.bytes;
  }
  if (together > 0) store_.note_working_set(together);
}

}  // namespace torchlore::budget
