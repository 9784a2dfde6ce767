#include "store.hpp"

#include <algorithm>

#include "hand_writes.hpp"

namespace torchlore::budget {

void check_unchanged(const Value& value) {
  TORCH_CHECK(
      value.valid() && value.held, "ActivationBudget: a tensor of ", to_string(Bytes(value.bytes)),
      " that backward needs was changed in place after the forward pass read it (it is at "
      "version ",
      value.version.enabled() ? value.version.current_version() : 0, ", and was at ",
      value.recorded_version, "). Change parameters and inputs after backward, or change a copy");
}

bool Store::touched(const Value& value, const c10::StorageImpl& storage) const {
  return value.marked && value.current && !is_marked(storage);
}

/// Bytes written by hand cannot be computed: they are pinned as a new value. What was saved is of
/// the new bytes, as in a plain run; ops that read the old ones before are replayed with the old.
void Store::resettle(Value& value, const c10::Storage& storage) {
  const ValueRef until_done(&value);  // its savers may be all that keeps it
  ++stats_->touched;
  auto* record = new Record(*this);
  const RecordRef keep_alive(record);
  auto& written = record->add(Slot::outside, 0, storage, value.version);
  written.pinned = true;
  while (value.savers != nullptr) {
    Saved& saved = *value.savers;
    const ValueRef before = saved.value;  // detach may drop the last reference
    move(saved, written, storage);
  }
  pool_.drop(value);
  value.watch = nullptr;
  value.current = false;
  value.marked = false;
  names_.put(storage, written);
}

Value* Store::find(c10::StorageImpl* storage) {
  Value* value = names_.find(storage);
  if (value == nullptr) return nullptr;
  if (touched(*value, *storage)) {
    const ValueRef before(value);
    resettle(*value, c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage)));
    value = names_.find(storage);
  }
  return value->valid() ? value : nullptr;
}

Value& Store::read(const c10::Storage& storage, const c10::VariableVersion& counter) {
  Value* value = find(storage.unsafeGetStorageImpl());
  if (value == nullptr) return add_outside(storage, counter);
  if (value->pinned) pin(*value, storage);
  return *value;
}

Value& Store::add_outside(const c10::Storage& storage, const c10::VariableVersion& counter) {
  auto* record = new Record(*this);
  auto& value = record->add(Slot::outside, 0, storage, counter);
  value.pinned = true;
  value.outside = true;
  names_.put(storage, value);
  pin(value, storage);
  return value;
}

Value& Store::add(Record& record, Slot slot, size_t index, const c10::Storage& storage,
                  const c10::VariableVersion& counter) {
  auto& value = record.add(slot, index, storage, counter);
  names_.put(storage, value);
  return value;
}

void Store::pin(Value& value, const c10::Storage& storage) {
  if (value.held) return;
  value.held = storage;
  value.home = storage.getWeakStorageImpl();
  if (value.outside) return;
  pinned_ += value.bytes;
  stats_->pinned_bytes = std::max(stats_->pinned_bytes, pinned_);
  note_working_set(0);
}

void Store::snapshot(Value& value) {
  const auto copy = clone_storage(value.held);
  if (value.outside) pinned_ += value.bytes;
  value.outside = false;
  value.held = copy;
  value.move_to(copy);
  stats_->pinned_bytes = std::max(stats_->pinned_bytes, pinned_);
}

void Store::retire(Value& value, const c10::StorageImpl* storage) {
  if (!value.pinned) pool_.drop(value);
  value.watch = nullptr;
  // A pinned value's bytes are where it is held; a snapshot of it is elsewhere.
  if (!value.held || value.held.unsafeGetStorageImpl() == storage) value.current = false;
}

void Store::attach(Saved& saved, Value& value, const c10::Storage& storage) {
  saved.value = ValueRef(&value);
  saved.next_saver = value.savers;
  saved.saver_link = &value.savers;
  if (value.savers != nullptr) value.savers->saver_link = &saved.next_saver;
  value.savers = &saved;
  value.was_saved = true;
  value.needed_at = std::max(value.needed_at, saved.saved_at);
  if (value.saver_count++ > 0) return;
  if (!value.outside) stats_->saved_bytes += value.bytes;
  if (value.valid()) keep(value, storage);
}

void Store::detach(Saved& saved) {
  auto& value = *saved.value;
  *saved.saver_link = saved.next_saver;
  if (saved.next_saver != nullptr) saved.next_saver->saver_link = saved.saver_link;
  if (--value.saver_count == 0 && !value.pinned) pool_.drop(value);
  saved.value = ValueRef();
}

void Store::follow(Value& before, Value& after, const c10::Storage& storage) {
  for (Saved* saved = before.savers; saved != nullptr;) {
    Saved& moved = *saved;
    saved = saved->next_saver;
    if (moved.unchanged()) move(moved, after, storage);
  }
}

/// What was saved of one value is of another, in the same storage, which is counted once.
void Store::move(Saved& saved, Value& to, const c10::Storage& storage) {
  const Value& from = *saved.value;
  const bool last = from.saver_count == 1 && !from.outside;
  const int64_t bytes = from.bytes;
  detach(saved);
  if (last) stats_->saved_bytes -= bytes;
  attach(saved, to, storage);
}

void Store::settle(Value& value) {
  if (value.pinned || value.busy || !value.valid()) return;
  if (value.watch) {
    if (const auto written = value.watch->written()) return resettle(value, written);
  }
  const auto home = value.home.lock();
  if (home && touched(value, *home)) resettle(value, c10::Storage(home));
}

c10::Storage Store::available(Value& value) {
  if (value.pinned) {
    check_unchanged(value);
    return value.held;
  }
  if (!value.valid()) {
    pool_.drop(value);
    return {};
  }
  settle(value);
  if (!value.current) return {};
  if (value.held) return value.held;
  // Packed or evicted, but its owner in the model or in the user's hands still has it.
  c10::Storage storage(value.home.lock());
  if (storage && value.saver_count > 0) keep(value, storage);
  return storage;
}

void Store::keep(Value& value, const c10::Storage& storage) {
  if (value.pinned) {
    pin(value, storage);
  } else {
    pool_.keep(value, storage);
  }
}

/// The pool lets go of the bytes. If others have them too, they may write.
void Store::watch(Value& value, const c10::Storage& storage) {
  if (!value.marked || storage.use_count() == 1) return;
  value.watch = std::make_unique<WriteWatch>(*storage.unsafeGetStorageImpl());
}

/// Keeps a value of two bit patterns as bits.
void Store::pack(Value& value) {
  if (touched(value, *value.held.unsafeGetStorageImpl())) return;
  auto packed = TwoValued::pack(value.held, value.savers->view.dtype.itemsize());
  value.many_valued = packed == nullptr;
  if (value.many_valued) return;
  watch(value, value.held);
  pool_.keep_packed(value, std::move(packed));
  ++stats_->packed;
}

void Store::fit() {
  while (pool_.bytes() + pinned_ > limit_) {  // first what costs next to nothing
    Value* value = pool_.untried();
    if (value == nullptr) break;
    pack(*value);
  }
  struct Victim {
    double score;
    Value* value;
    c10::Storage bytes;
  };
  std::vector<Victim> victims;
  while (pool_.bytes() + pinned_ > limit_) {
    Value* value = pool_.victim();
    if (value == nullptr) break;
    if (value->held && touched(*value, *value->held.unsafeGetStorageImpl())) {
      const ValueRef before(value);
      resettle(*value, c10::Storage(value->held));
      continue;
    }
    if (value->held) {
      watch(*value, value->held);
      victims.push_back({pool_.score(*value), value, value->held});
    }
    pool_.evict(*value);
    ++stats_->evictions;
  }
  // A large last victim may have made room for smaller ones: the dearest that fit come back.
  if (victims.size() > 1) {
    std::sort(victims.begin(), victims.end(),
              [](const auto& a, const auto& b) { return a.score > b.score; });
    for (const auto& [score, value, bytes] : victims) {
      if (pool_.bytes() + pinned_ + value->bytes > limit_) continue;
      pool_.keep(*value, bytes);
      --stats_->evictions;
    }
  }
  stats_->peak_pool_bytes = std::max(stats_->peak_pool_bytes, pool_.bytes() + pinned_);
}

void Store::note_working_set(int64_t bytes) {
  working_set_ = std::max(working_set_, bytes);
  stats_->floor_bytes = std::max(stats_->floor_bytes, pinned_ + working_set_);
}

void Store::forget(Value& value) {
  pool_.forget(value);
  if (value.pinned && !value.outside && value.held) pinned_ -= value.bytes;
}

}  // namespace torchlore::budget
