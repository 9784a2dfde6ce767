#pragma once

#include <c10/core/StorageImpl.h>

namespace torchlore::budget {

/// Notices that somebody wrote into a storage by hand (`data_ptr`, `accessor`), which no op shows.
///
/// The mark is a check of LibTorch's own, made for copy-on-write: it calls a function when somebody
/// asks for a pointer to write through, and is gone after. Nothing is copied. Kernels read through
/// const pointers and leave the mark; those that do not are ops, after which it is put back.
/// @return whether the storage has the mark now. Before LibTorch 2.13 an allocator of unusual
///         pointers allows none.
bool mark_storage(c10::StorageImpl& storage);

/// Whether the storage still has the mark.
bool is_marked(const c10::StorageImpl& storage);

}  // namespace torchlore::budget
