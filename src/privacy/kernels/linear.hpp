#pragma once

#include <cstdint>

#include "../../core/buffer_pool.hpp"
#include "example_layout.hpp"

namespace torchlore::kernels {

/// The rows that went into a linear layer, and the loss's gradients by the rows that came out.
struct LinearRows {
  ExampleLayout layout = {};
  const float* input = nullptr;     ///< [outer, B, inner, in]
  const float* gradient = nullptr;  ///< [outer, B, inner, out]
  int64_t in = 0;
  int64_t out = 0;
};

/// Per-example gradients of a linear layer: the weight's [out, in] are sums of outer products over the
/// example's rows, the bias's [out] are sums of rows. With one row per example, and no weight
/// gradients wanted, the norms alone are computed: ‖g‖²·‖x‖².
/// @note O(rows · in · out) per example; O(in + out) for one row and norms only.
void linear_gradients(const LinearRows& rows, const PerExample& weight, const PerExample& bias,
                      detail::BufferPool& scratch,
                      const PerExampleKernels& kernels = per_example_kernels());

}  // namespace torchlore::kernels
