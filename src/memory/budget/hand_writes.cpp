#include "hand_writes.hpp"

#include <c10/core/impl/COW.h>

namespace torchlore::budget {
namespace {

/// Being called is all it is for: the storage forgets it then.
void written(c10::StorageImpl* /*storage*/) {}

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

}  // namespace torchlore::budget
