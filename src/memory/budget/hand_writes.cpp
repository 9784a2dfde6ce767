#include "hand_writes.hpp"

#include <c10/core/impl/COW.h>
#include <c10/util/flat_hash_map.h>

#include <atomic>
#include <mutex>

namespace torchlore::budget {
namespace {

/// All watches. Any thread may write.
struct Watches {
  std::mutex mutex;
  ska::flat_hash_map<const c10::StorageImpl*, c10::Storage*> of;
  std::atomic<size_t> count = 0;
};

Watches& watches() {
  static auto* const all = new Watches;  // graphs may outlive static objects
  return *all;
}

/// Called for the first write; the storage forgets it then.
void written(c10::StorageImpl* storage) {
  auto& all = watches();
  if (all.count.load(std::memory_order_acquire) == 0) return;
  const std::lock_guard lock(all.mutex);
  const auto found = all.of.find(storage);
  if (found == all.of.end()) return;
  *found->second = c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage));
}

template <typename Storage>
concept HasMaterializer = requires(Storage& storage) {
  storage.set_materializer(&written);
};

template <typename Storage>
bool is_marked_in(const Storage& storage) {
  if constexpr (HasMaterializer<Storage>) {
    return storage.has_materializer();
  } else {
    return c10::impl::cow::is_cow_data_ptr(storage.data_ptr());
  }
}

template <typename Storage>
bool mark_in(Storage& storage) {
  if (is_marked_in(storage)) return true;
  if constexpr (HasMaterializer<Storage>) {
    storage.set_materializer(&written);
    return true;
  } else {
    // A clone that is dropped at once: copy-on-write with one owner, who need not copy.
    return c10::impl::cow::lazy_clone_storage(storage) != nullptr;
  }
}

}  // namespace

bool mark_storage(c10::StorageImpl& storage) { return mark_in(storage); }

bool is_marked(const c10::StorageImpl& storage) { return is_marked_in(storage); }

WriteWatch::WriteWatch(const c10::StorageImpl& storage) : storage_(&storage) {
  auto& all = watches();
  const std::lock_guard lock(all.mutex);
  all.of[storage_] = &written_;
  all.count = all.of.size();
}

WriteWatch::~WriteWatch() {
  auto& all = watches();
  const std::lock_guard lock(all.mutex);
  const auto found = all.of.find(storage_);
  if (found != all.of.end() && found->second == &written_) all.of.erase(found);
  all.count = all.of.size();
}

c10::Storage WriteWatch::written() const {
  const std::lock_guard lock(watches().mutex);
  return written_;
}

void WriteWatch::forget() {
  c10::Storage dropped;  // after the lock: it may be the last owner
  const std::lock_guard lock(watches().mutex);
  std::swap(dropped, written_);
}

}  // namespace torchlore::budget
