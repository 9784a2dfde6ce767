#pragma once

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdint>
#include <limits>

namespace torchlore::testing {

/// A CPU allocator that runs out of memory at one chosen allocation, and passes all others on.
class FaultyAllocator final : public c10::Allocator {
 public:
  /// Takes the place of the process's allocator, once and for good.
  static FaultyAllocator& install() {
    static auto* allocator = [] {
      auto* made = new FaultyAllocator(*c10::GetCPUAllocator());
      constexpr uint8_t kHighest = 255;
      c10::SetCPUAllocator(made, kHighest);
      return made;
    }();
    return *allocator;
  }

  /// Fails once, `n` allocations from now (0: the next one), and counts anew.
  void fail_at(int64_t n) {
    count_ = 0;
    fails_at_ = n;
  }
  /// Fails no more, and counts anew.
  void never_fail() { fail_at(std::numeric_limits<int64_t>::max()); }
  /// Allocations since the last call of the two above.
  int64_t count() const { return count_; }

  c10::DataPtr allocate(size_t size) override {
    if (size > 0 && count_++ == fails_at_) {
      C10_THROW_ERROR(OutOfMemoryError, "injected: out of memory");
    }
    return inner_.allocate(size);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner_.raw_deleter(); }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }

 private:
  explicit FaultyAllocator(c10::Allocator& inner) : inner_(inner) {}

  c10::Allocator& inner_;
  std::atomic<int64_t> count_ = 0;
  std::atomic<int64_t> fails_at_ = std::numeric_limits<int64_t>::max();
};

}  // namespace torchlore::testing
