#pragma once

#include <cstdint>

#include "torchlore/schedule/schedule.hpp"

/// What the functions that make schedules share.
namespace torchlore::schedule::detail {

/// Throws unless `steps` >= 1; `function` is the one that was called, as in "cosine".
void check_steps(const char* function, int64_t steps);
/// Throws unless `value` lies in [0, 1]; `name` is as in "schedule::cosine: min_factor".
void check_factor(const char* name, double value);

/// The share t / steps as a floating number.
inline double share(int64_t t, int64_t steps) {
  return static_cast<double>(t) / static_cast<double>(steps);
}

/// From 1 at part 0 to 0 at part 1, along half a cosine.
double half_cosine(double part);

}  // namespace torchlore::schedule::detail
