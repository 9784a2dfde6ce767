#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>

namespace torchlore::detail {

/// Throws if the norm is inf or NaN. Host syncs: 1.
inline void check_finite_norm(const at::Tensor& norm) {
  const double value = norm.item().toDouble();
  TORCH_CHECK(std::isfinite(value), "the norm of the gradients is ", value,
              ", so they cannot be clipped; look for what made it (a loss scale or a learning rate "
              "too high), or set error_if_nonfinite = false");
}

}  // namespace torchlore::detail
