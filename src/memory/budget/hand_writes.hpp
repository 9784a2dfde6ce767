#pragma once

#include <c10/core/Storage.h>

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

/// Watches a marked storage that others own: a write by hand makes the watch an owner too. Else the
/// bytes written could be gone before anybody looks, and with them the knowledge of the write.
/// Before LibTorch 2.13 it sees nothing.
class WriteWatch {
 public:
  /// The storage's address must not be given to another while the watch lasts (a weak reference).
  explicit WriteWatch(const c10::StorageImpl& storage);
  ~WriteWatch();
  WriteWatch(const WriteWatch&) = delete;
  WriteWatch(WriteWatch&&) = delete;
  WriteWatch& operator=(const WriteWatch&) = delete;
  WriteWatch& operator=(WriteWatch&&) = delete;

  /// The storage, if it was written; nothing else.
  c10::Storage written() const;
  /// It was an op, which is known of otherwise.
  void forget();

 private:
  const c10::StorageImpl* storage_;
  c10::Storage written_;
};

}  // namespace torchlore::budget
