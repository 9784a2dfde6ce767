#pragma once

#include <cstdint>

#include "per_example_kernels.hpp"

namespace torchlore::kernels {

/// sum[i] += Σ_b factors[b] · gradients[b][i], over per-example gradients [batch, count]. Examples
/// with factor 0 are not read, so that NaN in them does no harm.
void add_weighted_sum(const float* gradients, const float* factors, int64_t batch, int64_t count,
                      float* sum, const PerExampleKernels& kernels = per_example_kernels());

}  // namespace torchlore::kernels
