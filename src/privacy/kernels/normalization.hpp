#pragma once

#include <cstdint>

#include "../../core/buffer_pool.hpp"
#include "example_layout.hpp"

namespace torchlore::kernels {

/// The rows of a layer norm, or of an RMS norm.
struct NormalizedRows {
  ExampleLayout layout = {};
  const float* input = nullptr;     ///< [outer, B, inner, width]
  const float* gradient = nullptr;  ///< by the output, in the same shape
  const float* mean = nullptr;      ///< [outer, B, inner]; nullptr: 0 (RMS norm)
  const float* rstd = nullptr;      ///< [outer, B, inner]
  int64_t width = 0;
};

/// Per-example gradients [width] of a layer norm's weight, Σ g·(x - mean)·rstd, and bias, Σ g.
void layer_norm_gradients(const NormalizedRows& rows, const PerExample& weight,
                          const PerExample& bias, detail::BufferPool& scratch,
                          const PerExampleKernels& kernels = per_example_kernels());

/// The channels of a group norm; an instance norm has as many groups as channels.
struct NormalizedChannels {
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t groups = 1;
  int64_t places = 0;               ///< of one channel
  const float* input = nullptr;     ///< [B, channels, places]
  const float* gradient = nullptr;  ///< by the output, in the same shape
  const float* mean = nullptr;      ///< [B, groups]
  const float* rstd = nullptr;      ///< [B, groups]
};

/// Per-example gradients [channels] of a group norm's weight and bias.
void group_norm_gradients(const NormalizedChannels& channels, const PerExample& weight,
                          const PerExample& bias,
                          const PerExampleKernels& kernels = per_example_kernels());

}  // namespace torchlore::kernels
