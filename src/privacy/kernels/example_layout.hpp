#pragma once

#include <cstdint>

#include "per_example_kernels.hpp"

namespace torchlore::kernels {

/// Where the examples lie in contiguous rows: [outer, batch, inner, width]. [B, D] is {1, B, 1},
/// [T, B, D] is {T, B, 1} and [B, T, D] is {1, B, T}.
struct ExampleLayout {
  int64_t outer = 1;
  int64_t batch = 0;
  int64_t inner = 1;

  /// Rows of one example.
  int64_t rows() const { return outer * inner; }
  /// An example's row in its block of `outer`, or its first row with `block` 0.
  int64_t row(int64_t block, int64_t example, int64_t i) const {
    return (block * batch + example) * inner + i;
  }
  ExampleRows rows_of(const float* data, int64_t width, int64_t example) const {
    return {.data = data + row(0, example, 0) * width,
            .runs = outer,
            .run_stride = batch * inner * width,
            .rows = inner,
            .width = width};
  }
};

/// Where a parameter's per-example gradients go. What is nullptr is not wanted.
struct PerExample {
  double* squared_norms = nullptr;  ///< [B], added to
  float* gradients = nullptr;       ///< [B, elements], written

  bool wanted() const { return squared_norms != nullptr || gradients != nullptr; }
};

}  // namespace torchlore::kernels
