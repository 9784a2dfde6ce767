#include "rejection_sampler.hpp"

#include <cmath>

#include "torchlore/core/error.hpp"

// Whole numbers only; why none of them overflows is written beside them. L below is the limit on the
// tail, 2^12 scales: the draw that would reach beyond has probability exp(-4096), and is refused.
namespace torchlore::privacy {
namespace {

constexpr uint64_t kLongestTail = 1 << 12;

/// |y| of a discrete Laplace number of scale t / s, in which 0 counts twice.
uint64_t draw_magnitude(RandomBits& bits, uint64_t t, int log2_s) {
  for (;;) {
    const auto u = static_cast<uint64_t>(bits.below(t));
    if (!bernoulli_exp(bits, u, t)) continue;
    uint64_t v = 0;
    while (bernoulli_exp(bits, 1, 1)) {
      TORCH_CHECK(++v < kLongestTail, "the source of random bits is broken: it repeats itself");
    }
    return (u + t * v) >> log2_s;  // t <= 2^46: below 2^58
  }
}

int64_t draw_laplace(RandomBits& bits, uint64_t t, int log2_s) {
  for (;;) {
    const auto magnitude = static_cast<int64_t>(draw_magnitude(bits, t, log2_s));
    const bool negative = bits.bit();
    if (negative && magnitude == 0) continue;  // or 0 would count twice
    return negative ? -magnitude : magnitude;
  }
}

uint128 square(uint128 x) { return x * x; }

}  // namespace

Scale Scale::at_least(double value) {
  check_in_range("the scale of discrete noise, in grid units,", value, kLeast, kMost);
  constexpr int kBits = 24;
  const int shift = std::max(0, kBits - 1 - std::ilogb(value));
  Scale scale{.numerator = static_cast<uint64_t>(std::ceil(std::ldexp(value, shift))),
              .shift = shift};
  while (scale.shift > 0 && scale.numerator % 2 == 0) {
    scale.numerator /= 2;
    --scale.shift;
  }
  return scale;
}

double Scale::value() const { return std::ldexp(static_cast<double>(numerator), -shift); }

int64_t draw_discrete_laplace(RandomBits& bits, const Scale& scale) {
  return draw_laplace(bits, scale.numerator, scale.shift);
}

int64_t draw_discrete_gaussian(RandomBits& bits, const Scale& sigma) {
  // A discrete Laplace number of whole scale t, kept with probability exp(-(|y| - sigma^2 / t)^2 / (2
  // sigma^2)). The exponent as a fraction, with sigma = S / 2^q, times (2^2q t)^2:
  //   q = 0, t = S:  (|y| - S)^2 / (2 S^2);             S <= 2^46: below 2^117 / 2^93
  //   q > 0:         (|y| t 4^q - S^2)^2 / (2 4^q t^2 S^2);
  //     S <= 2^24, t = ceil(sigma), t^2 4^q <= 2^50: below (L 2^50)^2 = 2^124 / 2^99
  const uint64_t s = sigma.numerator;
  const int q = sigma.shift;
  const uint64_t t = q == 0 ? s : (s >> q) + 1;
  const uint128 denominator = q == 0 ? 2 * square(s) : (2 * square(s) * square(t)) << (2 * q);
  for (;;) {
    const int64_t y = draw_laplace(bits, t, 0);
    const uint128 magnitude = static_cast<uint64_t>(y < 0 ? -y : y);
    const uint128 a = q == 0 ? magnitude : (magnitude * t) << (2 * q);
    const uint128 b = q == 0 ? uint128{s} : square(s);
    if (bernoulli_exp(bits, square(a > b ? a - b : b - a), denominator)) return y;
  }
}

}  // namespace torchlore::privacy
