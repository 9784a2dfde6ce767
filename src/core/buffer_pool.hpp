#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <memory>

namespace torchlore::detail {

/// Lends float32 CPU memory that is needed again step after step, so that the system need not map
/// (and clear) its pages each time.
///
/// A tensor's memory comes back when the tensor is gone, from whatever thread; it may outlive the
/// pool. What is not lent is kept up to a limit, the longest unused memory going first. Memory comes
/// from LibTorch's allocator, so meters see it. For any number of threads.
class BufferPool {
 public:
  /// @param max_kept_bytes limit of what is kept while nobody uses it; 0 keeps nothing
  explicit BufferPool(int64_t max_kept_bytes);
  /// Frees what is kept.
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  /// A contiguous tensor of unset values.
  at::Tensor empty(at::IntArrayRef sizes);
  /// What is kept and not lent.
  int64_t kept_bytes() const;

 private:
  class Shelf;
  std::shared_ptr<Shelf> shelf_;
};

}  // namespace torchlore::detail
