#pragma once

#include <cmath>

#include "rejection_sampler.hpp"

namespace torchlore::privacy {

/// The grid that secure noise lies on: a power of two chosen by the noise alone, so that it says
/// nothing about the values.
struct NoiseGrid {
  int exponent = 0;  ///< the distance of the grid's points is 2^exponent
  Scale scale;       ///< of the noise, in that unit

  static constexpr int kFineness = 42;  ///< the noise is at least 2^42 units wide
  /// By how much of itself the noise is made larger, to pay for rounding the values to the grid.
  /// Values at a distance D in d dimensions may lie D + unit × sqrt(d) apart after it (L2; D + unit × d
  /// in L1), which is below D × (1 + 2^-16) as long as noise / D × sqrt(d) < 2^26 (L1: × d).
  static constexpr double kRaise = 0x1p-16;

  /// @param stddev_or_scale in [1e-200, 1e200].
  static NoiseGrid of(double stddev_or_scale) {
    const int exponent = std::ilogb(stddev_or_scale) - kFineness;
    return {.exponent = exponent,
            .scale = Scale::at_least(std::ldexp(stddev_or_scale, -exponent) * (1 + kRaise))};
  }

  double unit() const { return std::ldexp(1.0, exponent); }
  double inverse_unit() const { return std::ldexp(1.0, -exponent); }
};

}  // namespace torchlore::privacy
