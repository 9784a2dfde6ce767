#pragma once

#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>

/// Checks of options that several modules share. All throw `c10::ValueError` with a text that names
/// the option, its value and what is allowed; anything special is checked where it is used, with
/// LibTorch's own `TORCH_CHECK_VALUE`, `TORCH_CHECK_TYPE` and `TORCH_CHECK_NOT_IMPLEMENTED`.
namespace torchlore {

/// Throws unless `value` is finite and > 0.
inline void check_positive(const char* name, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name,
                    " must be a finite number above 0, but is ", value);
}

/// Throws unless `value` is finite and >= 0.
inline void check_not_negative(const char* name, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= 0, name,
                    " must be a finite number, 0 or above, but is ", value);
}

/// Throws unless `low <= value <= high`; NaN throws.
inline void check_in_range(const char* name, double value, double low, double high) {
  TORCH_CHECK_VALUE(value >= low && value <= high, name, " must lie in [", low, ", ", high,
                    "], but is ", value);
}

/// Throws unless `value` is the p of a p-norm: > 0, infinity included.
inline void check_norm_type(double value) {
  TORCH_CHECK_VALUE(value > 0, "norm_type must be above 0 (2, 1, infinity, …), but is ", value);
}

/// Throws unless `value` >= 1.
inline void check_count(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(value >= 1, name, " must be 1 or more, but is ", value);
}

}  // namespace torchlore
