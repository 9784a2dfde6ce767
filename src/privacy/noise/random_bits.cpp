#include "random_bits.hpp"

#include <openssl/crypto.h>

namespace torchlore::privacy {
namespace {

/// True with probability exp(-numerator / denominator) for a ratio of at most 1: the parity of the
/// length of a run of successes, of which number k has probability ratio / k.
bool bernoulli_exp_small(RandomBits& bits, uint128 numerator, uint128 denominator) {
  constexpr unsigned kLongest = 1000;  // reached with probability 1 / 1000! < 10^-2567
  unsigned k = 1;
  while (bits.below(denominator * k) < numerator) {
    TORCH_CHECK(++k < kLongest, "the source of random bits is broken: it repeats itself");
  }
  return k % 2 == 1;
}

}  // namespace

RandomBits::~RandomBits() {
  OPENSSL_cleanse(buffer_.data(), buffer_.size() * sizeof(buffer_[0]));
  OPENSSL_cleanse(&bits_, sizeof(bits_));
}

void RandomBits::refill() {
  words_.fill(buffer_);
  next_ = 0;
}

uint128 RandomBits::below(uint128 bound) {
  // As many bits as the largest allowed number has, again until the number is allowed: at most two
  // tries on average.
  const int width = bit_width(bound - 1);
  const uint128 mask = width == 128 ? ~uint128{0} : (uint128{1} << width) - 1;
  for (;;) {
    const uint64_t low = width <= 32 ? word() : wide();
    const uint128 number = ((width <= 64 ? uint128{0} : uint128{wide()} << 64) | low) & mask;
    if (number < bound) return number;
  }
}

bool bernoulli_exp(RandomBits& bits, uint128 numerator, uint128 denominator) {
  for (; numerator > denominator; numerator -= denominator) {
    if (!bernoulli_exp_small(bits, 1, 1)) return false;
  }
  return bernoulli_exp_small(bits, numerator, denominator);
}

}  // namespace torchlore::privacy
