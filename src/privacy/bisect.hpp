#pragma once

#include <limits>

namespace torchlore {

/// The smallest x >= 0, to a relative 1e-12, at which `holds`, which stays true from there on. The
/// result is one at which it was seen to hold; infinity if there is none below 1e9.
template <typename F>
double first_true(const F& holds, double tolerance = 1e-12) {
  if (holds(0.0)) return 0;
  double high = 1;
  while (!holds(high)) {
    high *= 2;
    if (high > 1e9) return std::numeric_limits<double>::infinity();
  }
  double low = high > 1 ? high / 2 : 0;
  while (high - low > tolerance * high) {
    const double middle = (low + high) / 2;
    (holds(middle) ? high : low) = middle;
  }
  return high;
}

}  // namespace torchlore
