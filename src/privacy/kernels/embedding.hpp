#pragma once

#include <cstdint>

#include "../../core/buffer_pool.hpp"
#include "example_layout.hpp"

namespace torchlore::kernels {

/// The tokens that an embedding looked up, and the loss's gradients by the rows that came out.
struct EmbeddedTokens {
  ExampleLayout layout = {};
  const int64_t* tokens = nullptr;  ///< [outer, B, inner]
  const float* gradient = nullptr;  ///< [outer, B, inner, width]
  int64_t width = 0;
  int64_t padding_idx = -1;  ///< a token whose row gets no gradient; -1: none
};

/// Adds each example's squared norm of the table's gradient: rows of the same token are summed first.
void embedding_norms(const EmbeddedTokens& tokens, double* squared_norms,
                     detail::BufferPool& scratch,
                     const PerExampleKernels& kernels = per_example_kernels());

/// table[token] += Σ factors[example] · gradient row. Examples with factor 0 are not read. The sum's
/// order, and so its bits, do not depend on the number of threads.
void add_embedding_gradients(const EmbeddedTokens& tokens, const float* factors, float* table,
                             const PerExampleKernels& kernels = per_example_kernels());

}  // namespace torchlore::kernels
