#include "two_valued.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "tensor_view.hpp"

namespace torchlore::budget {
namespace {

constexpr int64_t kBlock = 64;  // elements to a word of bits
// Below this the bookkeeping weighs as much as the bytes.
constexpr size_t kFewBytes = 512;
// Blocks worth a thread.
constexpr int64_t kGrain = 4096;

template <typename T>
bool pack_block(const T* x, T first, T second, uint64_t& word) {
  uint8_t is_second[kBlock];
  uint8_t third = 0;
  for (int64_t i = 0; i < kBlock; ++i) is_second[i] = static_cast<uint8_t>(x[i] == second);
  for (int64_t i = 0; i < kBlock; ++i) {
    third |= static_cast<uint8_t>((x[i] != first) & (x[i] != second));
  }
  word = 0;
  for (int64_t i = 0; i < kBlock; i += 8) {
    // Eight bytes of 0 or 1: the product brings each to a bit of its own in the highest byte.
    uint64_t eight = 0;
    std::memcpy(&eight, is_second + i, sizeof(eight));
    word |= ((eight * 0x0102040810204080U) >> 56) << i;
  }
  return third == 0;
}

template <typename T>
void unpack_block(uint64_t word, T first, T second, T* x) {
  uint8_t is_second[kBlock];
  for (int64_t i = 0; i < kBlock; i += 8) {
    // A copy of eight bits in each of eight bytes, and of the k-th byte all but the k-th bit away.
    const uint64_t eight = ((word >> i) & 0xff) * 0x0101010101010101U & 0x8040201008040201U;
    std::memcpy(is_second + i, &eight, sizeof(eight));
  }
  for (int64_t i = 0; i < kBlock; ++i) x[i] = is_second[i] != 0 ? second : first;
}

/// The first element unlike the first one; the first one if all are alike.
template <typename T>
T other_pattern(const T* x, int64_t count) {
  const auto* found = std::find_if(x, x + count, [x](T value) { return value != x[0]; });
  return found == x + count ? x[0] : *found;
}

}  // namespace

std::shared_ptr<const TwoValued> TwoValued::pack(const c10::Storage& storage, size_t element_size) {
  const size_t nbytes = storage.nbytes();
  if (nbytes < kFewBytes || storage.device_type() != c10::kCPU) return nullptr;
  if (nbytes % element_size != 0) return nullptr;
  auto packed = std::make_shared<TwoValued>();
  packed->nbytes_ = nbytes;
  packed->element_size_ = element_size;
  bool fits = false;
  if (element_size == 1) fits = packed->pack_elements<uint8_t>(storage);
  if (element_size == 2) fits = packed->pack_elements<uint16_t>(storage);
  if (element_size == 4) fits = packed->pack_elements<uint32_t>(storage);
  if (element_size == 8) fits = packed->pack_elements<uint64_t>(storage);
  return fits ? packed : nullptr;
}

template <typename T>
bool TwoValued::pack_elements(const c10::Storage& storage) {
  const auto* x = static_cast<const T*>(storage.data());
  const auto count = static_cast<int64_t>(nbytes_ / sizeof(T));
  const T first = x[0];
  const T second = other_pattern(x, count);
  first_ = first;
  second_ = second;
  // Most tensors end here, before anything is allocated.
  const auto is_known = [&](T value) { return value == first || value == second; };
  if (!std::all_of(x, x + std::min(count, kBlock), is_known)) return false;

  const int64_t words = (count + kBlock - 1) / kBlock;
  bits_ = new_storage(static_cast<size_t>(words) * sizeof(uint64_t), c10::kCPU);
  auto* bits = static_cast<uint64_t*>(bits_.mutable_data());
  std::atomic<bool> two_patterns = true;
  at::parallel_for(0, words, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end && two_patterns.load(std::memory_order_relaxed); ++w) {
      const int64_t left = count - w * kBlock;
      T tail[kBlock];
      if (left < kBlock) {
        std::fill(tail, tail + kBlock, first);
        std::copy_n(x + w * kBlock, left, tail);
      }
      if (!pack_block(left < kBlock ? tail : x + w * kBlock, first, second, bits[w])) {
        two_patterns = false;
      }
    }
  });
  return two_patterns;
}

template <typename T>
void TwoValued::unpack_elements(const c10::Storage& storage) const {
  auto* x = static_cast<T*>(storage.mutable_data());
  const auto* bits = static_cast<const uint64_t*>(bits_.data());
  const auto count = static_cast<int64_t>(nbytes_ / sizeof(T));
  const auto first = static_cast<T>(first_);
  const auto second = static_cast<T>(second_);
  at::parallel_for(0, (count + kBlock - 1) / kBlock, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      const int64_t left = count - w * kBlock;
      if (left >= kBlock) {
        unpack_block(bits[w], first, second, x + w * kBlock);
        continue;
      }
      T tail[kBlock];
      unpack_block(bits[w], first, second, tail);
      std::copy_n(tail, left, x + w * kBlock);
    }
  });
}

c10::Storage TwoValued::unpack() const {
  auto storage = new_storage(nbytes_, c10::kCPU);
  if (element_size_ == 1) unpack_elements<uint8_t>(storage);
  if (element_size_ == 2) unpack_elements<uint16_t>(storage);
  if (element_size_ == 4) unpack_elements<uint32_t>(storage);
  if (element_size_ == 8) unpack_elements<uint64_t>(storage);
  return storage;
}

}  // namespace torchlore::budget
