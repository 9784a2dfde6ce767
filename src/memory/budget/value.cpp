#include "value.hpp"

namespace torchlore::budget {

Value::Value(Record& of, Slot in, size_t at, const c10::Storage& storage,
             c10::VariableVersion counter)
    : record(&of),
      slot(in),
      index(static_cast<uint32_t>(at)),
      recorded_version(counter.enabled() ? counter.current_version() : 0),
      bytes(static_cast<int64_t>(storage.nbytes())),
      version(std::move(counter)),
      home(storage.getWeakStorageImpl()) {}

void Value::move_to(const c10::Storage& storage) {
  watch = nullptr;
  home = storage.getWeakStorageImpl();
  version = c10::VariableVersion();
  current = true;
  marked = false;
}

ValueRef::ValueRef(Value* value) : value_(value) {
  if (value_ != nullptr) value_->record->retain();
}

ValueRef::~ValueRef() {
  if (value_ != nullptr) value_->record->release();
}

Value& Record::add(Slot slot, size_t index, const c10::Storage& storage,
                   c10::VariableVersion counter) {
  if (!first) return first.emplace(*this, slot, index, storage, std::move(counter));
  return *more.emplace_back(
      std::make_unique<Value>(*this, slot, index, storage, std::move(counter)));
}

void Record::release() {
  if (--references == 0) delete this;
}

Record::~Record() {
  each_value([this](Value& value) { listener.forget(value); });
  // A chain of records must not be destroyed by recursion: a long model would overflow the stack.
  // The outermost destructor takes the inputs of all others and drops them one by one.
  using Inputs = c10::SmallVector<Input, 2>;
  thread_local std::vector<Inputs>* dropped = nullptr;
  if (dropped != nullptr) {
    dropped->push_back(std::move(inputs));
    return;
  }
  std::vector<Inputs> mine;
  dropped = &mine;
  inputs.clear();
  while (!mine.empty()) {
    const auto next = std::move(mine.back());
    mine.pop_back();
  }
  dropped = nullptr;
}

void Saved::join(Saved& other_one) {
  group_next = other_one.group_next;
  group_previous = &other_one;
  other_one.group_next->group_previous = this;
  other_one.group_next = this;
}

void Saved::leave_group() {
  group_next->group_previous = group_previous;
  group_previous->group_next = group_next;
  group_next = group_previous = this;
}

}  // namespace torchlore::budget
