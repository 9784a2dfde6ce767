#pragma once

#include <c10/core/ScalarType.h>

#include "gradient_kernels.hpp"

namespace torchlore::kernels {

/// The kernels' name of a floating dtype; float32 for those that they do not know.
inline Element element_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::kHalf:
      return Element::f16;
    case c10::kBFloat16:
      return Element::bf16;
    case c10::kDouble:
      return Element::f64;
    default:
      return Element::f32;
  }
}

}  // namespace torchlore::kernels
