#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/util/flat_hash_map.h>

#include "value.hpp"

namespace torchlore::budget {

/// Which value a storage has now.
class Names {
 public:
  /// The newest value of the storage; nullptr for one that is not known.
  Value* find(const c10::StorageImpl* storage) const {
    const auto found = named_.find(storage);
    return found == named_.end() ? nullptr : found->second.value.get();
  }
  /// Names the storage's newest value.
  void put(const c10::Storage& storage, Value& value) {
    named_.insert_or_assign(storage.unsafeGetStorageImpl(),
                            Entry{storage.getWeakStorageImpl(), ValueRef(&value)});
    if (named_.size() > next_prune_) prune();
  }
  /// Forgets storages that are gone, and those that only this table keeps.
  void prune() {
    for (auto entry = named_.begin(); entry != named_.end();) {
      const Value& value = *entry->second.value;
      const bool only_here = value.pinned && value.held && value.record->references == 1;
      entry = only_here || entry->second.key.expired() ? named_.erase(entry) : std::next(entry);
    }
    next_prune_ = 2 * named_.size() + 256;
  }
  /// Forgets all.
  void clear() { named_.clear(); }

 private:
  struct Entry {
    // A weak reference keeps the address from being given to another storage.
    c10::weak_intrusive_ptr<c10::StorageImpl> key;
    ValueRef value;
  };
  ska::flat_hash_map<const c10::StorageImpl*, Entry> named_;
  size_t next_prune_ = 256;
};

}  // namespace torchlore::budget
