#pragma once

#include <cstdint>

#include "random_bits.hpp"

namespace torchlore::privacy {

/// The parameter of a discrete distribution, as the samplers compute with it: numerator / 2^shift,
/// without rounding. A numerator below 2^24, or a shift of 0.
struct Scale {
  uint64_t numerator = 1;
  int shift = 0;

  static constexpr double kLeast = 0.25;
  static constexpr double kMost = 0x1p46;

  /// The least such number that is not below `value`: above it by 2^-23 of itself at most.
  /// @param value in [kLeast, kMost].
  static Scale at_least(double value);

  double value() const;
};

/// A whole number y with probability proportional to exp(-|y| / scale), exactly.
/// Source: Canonne, Kamath, Steinke (2020), arXiv:2004.00010, algorithm 2.
int64_t draw_discrete_laplace(RandomBits& bits, const Scale& scale);

/// A whole number y with probability proportional to exp(-y^2 / (2 sigma^2)), exactly: some 10^6 a
/// second.
/// Source: the same, algorithm 3.
int64_t draw_discrete_gaussian(RandomBits& bits, const Scale& sigma);

}  // namespace torchlore::privacy
