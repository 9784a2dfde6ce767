#pragma once

#include <c10/core/Storage.h>

#include <cstdint>
#include <memory>

namespace torchlore::budget {

/// Bytes of which each element has one of two bit patterns, as one bit for each: dropout masks
/// (0 and 1 / (1 - p)), comparisons, padding masks, constants. Nothing is lost, and reading them
/// again costs far less than drawing the random numbers again.
class TwoValued {
 public:
  /// @param element_size 1, 2, 4 or 8 bytes
  /// @return nullptr if there is a third pattern, which for most tensors the first few elements
  ///         show; for few bytes, for another element size, and off the CPU.
  static std::shared_ptr<const TwoValued> pack(const c10::Storage& storage, size_t element_size);
  /// New bytes, equal to those that were packed.
  c10::Storage unpack() const;
  /// What it keeps.
  int64_t bytes() const { return static_cast<int64_t>(bits_.nbytes()); }

 private:
  template <typename T>
  bool pack_elements(const c10::Storage& storage);
  template <typename T>
  void unpack_elements(const c10::Storage& storage) const;

  c10::Storage bits_;
  size_t nbytes_ = 0;
  size_t element_size_ = 0;
  uint64_t first_ = 0;   // the pattern of a 0 bit
  uint64_t second_ = 0;  // the pattern of a 1 bit
};

}  // namespace torchlore::budget
