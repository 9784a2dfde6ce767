#include "buffer_pool.hpp"

#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <list>
#include <mutex>
#include <utility>

namespace torchlore::detail {

/// What is kept, the longest unused first.
class BufferPool::Shelf {
 public:
  struct Memory {
    c10::DataPtr data = {};
    int64_t bytes = 0;
  };

  explicit Shelf(int64_t limit) : limit_(limit) {}

  /// The smallest memory kept that is large enough, and not much larger; or new memory.
  Memory take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = kept_.end();
      for (auto it = kept_.begin(); it != kept_.end(); ++it) {
        if (it->bytes < bytes || it->bytes / 2 > bytes) continue;
        if (best == kept_.end() || it->bytes < best->bytes) best = it;
      }
      if (best != kept_.end()) {
        auto found = std::move(*best);
        kept_.erase(best);
        kept_bytes_ -= found.bytes;
        return found;
      }
    }
    return {c10::GetCPUAllocator()->allocate(static_cast<size_t>(bytes)), bytes};
  }

  void put(Memory memory) {
    std::list<Memory> dropped;  // freed when the lock is gone
    const std::lock_guard<std::mutex> lock(mutex_);
    if (memory.bytes > limit_) {
      dropped.push_back(std::move(memory));
      return;
    }
    kept_bytes_ += memory.bytes;
    kept_.push_back(std::move(memory));
    while (kept_bytes_ > limit_) {
      kept_bytes_ -= kept_.front().bytes;
      dropped.splice(dropped.end(), kept_, kept_.begin());
    }
  }

  void close() {
    std::list<Memory> dropped;
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = -1;
    kept_bytes_ = 0;
    dropped.swap(kept_);
  }

  int64_t kept_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_bytes_;
  }

 private:
  std::mutex mutex_;
  std::list<Memory> kept_;
  int64_t kept_bytes_ = 0;
  int64_t limit_;
};

BufferPool::BufferPool(int64_t max_kept_bytes) {
  TORCH_CHECK_VALUE(max_kept_bytes >= 0, "max_kept_bytes must be 0 or more, but is ",
                    max_kept_bytes);
  shelf_ = std::make_shared<Shelf>(max_kept_bytes);
}

BufferPool::~BufferPool() { shelf_->close(); }

at::Tensor BufferPool::empty(at::IntArrayRef sizes) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(sizeof(float));
  auto memory = shelf_->take(std::max<int64_t>(bytes, 1));
  void* data = memory.data.get();
  // The tensor's deleter must be copyable, memory is not.
  auto loan = std::make_shared<Shelf::Memory>(std::move(memory));
  auto give_back = [shelf = shelf_, loan](void*) { shelf->put(std::move(*loan)); };
  return at::from_blob(data, sizes, std::move(give_back), at::TensorOptions(at::kFloat));
}

int64_t BufferPool::kept_bytes() const { return shelf_->kept_bytes(); }

}  // namespace torchlore::detail
