#pragma once

#include <c10/util/Exception.h>

#include <array>
#include <cstdint>

#include "random_words.hpp"

namespace torchlore::privacy {

__extension__ using uint128 = unsigned __int128;

/// Binary digits of a number; 0 for 0. (std::bit_width knows uint128 in GNU modes only.)
constexpr int bit_width(uint128 value) {
  int width = 0;
  for (; value != 0; value >>= 1) ++width;
  return width;
}

/// Exact draws from a stream of words: every probability is what it says, not a rounded one.
class RandomBits {
 public:
  /// @param words must outlive this.
  explicit RandomBits(RandomWords& words) : words_(words) {}
  ~RandomBits();  ///< wipes the bits that were not used
  RandomBits(const RandomBits&) = delete;
  RandomBits& operator=(const RandomBits&) = delete;

  uint32_t word() {
    if (next_ == buffer_.size()) refill();
    return buffer_[next_++];
  }
  uint64_t wide() {
    const uint64_t low = word();
    return uint64_t{word()} << 32 | low;
  }
  bool bit() {
    if (bits_left_ == 0) {
      bits_ = word();
      bits_left_ = 32;
    }
    return (bits_ >> --bits_left_ & 1) != 0;
  }

  /// A whole number in [0, bound), each with the same probability. @param bound 1 or more.
  uint128 below(uint128 bound);

 private:
  void refill();

  RandomWords& words_;
  std::array<uint32_t, 64> buffer_{};
  size_t next_ = buffer_.size();
  uint32_t bits_ = 0;
  int bits_left_ = 0;
};

/// True with probability exp(-numerator / denominator), exactly.
/// @param denominator above 0 and below 2^118.
/// Source: Canonne, Kamath, Steinke (2020), arXiv:2004.00010, algorithm 1.
bool bernoulli_exp(RandomBits& bits, uint128 numerator, uint128 denominator);

}  // namespace torchlore::privacy
