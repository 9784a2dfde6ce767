#pragma once

#include <string>

#include "torchlore/core/error.hpp"

namespace torchlore::detail {

/// Throws unless delta lies in (0, 1).
inline void check_delta(double delta, const char* name = "delta") {
  TORCH_CHECK_VALUE(delta > 0 && delta < 1, name, " must lie in (0, 1), but is ", delta);
}

/// Throws unless `owner` asks for a finite epsilon above 0 and a delta in (0, 1).
inline void check_epsilon_delta(const std::string& owner, double epsilon, double delta) {
  check_positive(("epsilon of a " + owner).c_str(), epsilon);
  check_delta(delta, ("delta of a " + owner).c_str());
}

}  // namespace torchlore::detail
