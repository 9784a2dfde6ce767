#pragma once

#include <cstdint>

#include "../../core/kernels/gradient_kernels.hpp"
#include "torchlore/attention/tile_layout.hpp"

/// Attention that computes only the tiles of a layout, forward and backward, on raw CPU memory.
/// Sizes, layouts and pointers are the caller's to check.
namespace torchlore::detail {
class BufferPool;
}

namespace torchlore::kernels {

struct BlockKernels;

/// Rows of a [batch, heads, rows, dim] tensor. Strides count elements; the last dimension is contiguous.
struct Rows {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
};

/// What both directions of one attention call read.
///
/// score(q, k) = scale · Q[q] · K[k] + bias(q, k) - slope · |k - (q + query_offset)|, over the pairs that
/// the layout shows. Sums and scores are float32 (float64 for f64); low precision is rounded once, at
/// the end, and P and dS as factors of products where the machine multiplies bfloat16 pairs.
struct AttentionProblem {
  Element element = Element::f32;  ///< of q, k, v, out and all gradients (`element_of` of a dtype)
  int64_t batch = 1;
  int64_t heads = 1;
  int64_t key_heads = 1;  ///< query head h reads key head h / (heads / key_heads)
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;   ///< of q and k: 1 to 256
  int64_t value_dim = 0;  ///< of v and out: 1 to 256
  Rows q = {};
  Rows k = {};
  Rows v = {};
  const TileLayout* const* layouts = nullptr;  ///< [batch · heads]; all of one tile size
  double scale = 1;                            ///< of any sign
  const float* alibi_slopes = nullptr;         ///< [heads], or nullptr
  const float* bias = nullptr;                 ///< or nullptr; -inf hides a pair
  int64_t bias_batch_stride = 0;               ///< in elements, as the next two; 0 broadcasts
  int64_t bias_head_stride = 0;
  int64_t bias_row_stride = 0;
  int64_t query_offset = 0;  ///< position of query 0 among the keys, for the slopes
  /// Probability of dropping a weight, [0, 1); the others grow by 1 / (1 - dropout). A weight is dropped
  /// if `dropout_number` is below it.
  double dropout = 0;
  uint64_t dropout_seed = 0;
};

/// What the tests count.
struct AttentionStatistics {
  int64_t executed_tiles = 0;  ///< tiles computed, over batch and heads; in a second pass again
};

/// The number in [0, 1), a multiple of 2^-24, that decides on dropping a weight: word query % 4 of Philox
/// block (key · 2^32 + query / 4) of step `batch_head` and of a stream of attention's own.
float dropout_number(uint64_t seed, int64_t batch_head, int64_t query, int64_t key);

/// Attention's output and the log-sum-exp of each query's scores. A query without keys gives 0 and -inf.
///
/// A key that a query does not see never reaches the query's output, whatever the key holds (NaN).
/// The same bits for any number of threads. On LibTorch's threads.
/// @param out         [batch, heads, queries, value_dim]; written
/// @param log_sum_exp [batch, heads, queries] contiguous float (double for f64), natural logarithm; written
/// @param scratch     lends what the threads write to in between: some 100 KB each
/// @param statistics  counted up, if not nullptr
/// @param kernels     the instruction set, or nullptr for the best one of this machine
/// @note O(tiles · 64² · dim).
void attention_forward(const AttentionProblem& problem, const Rows& out, void* log_sum_exp,
                       detail::BufferPool& scratch, AttentionStatistics* statistics = nullptr,
                       const BlockKernels* kernels = nullptr);

/// What the backward direction reads and writes beyond the problem.
struct AttentionGradients {
  Rows out = {};                      ///< as the forward wrote it
  const void* log_sum_exp = nullptr;  ///< as the forward wrote it
  Rows grad_out = {};
  /// Gradient of log_sum_exp, in its shape and type, or nullptr for 0.
  const void* grad_log_sum_exp = nullptr;
  Rows grad_q = {};  ///< written
  Rows grad_k =
      {};  ///< written: [batch, key_heads, keys, head_dim], summed over the group in float32
  Rows grad_v = {};  ///< written: as grad_k
};

/// How the backward goes over the tiles.
enum class Passes : uint8_t {
  automatic,  ///< `one` unless LibTorch has more than 4 times as many threads as batch · key_heads
  one,  ///< 5 products a tile; float32 sums of dK and dV in scratch; parallel over key heads, and
        ///< over up to 4 parts of the queries where there are fewer of them than threads
  two,  ///< 7 products a tile, dQ by rows, dK and dV by columns; parallel over tiles
};

/// Gradients of Q, K and V. No atomics: a call gives the same bits each time. `two`, and `one` without
/// parts, give the same bits as each other for any number of threads.
/// @param scratch as for the forward; also lends the float32 sums of dK and dV and one float per query
/// @note O(tiles · 64² · dim).
void attention_backward(const AttentionProblem& problem, const AttentionGradients& gradients,
                        detail::BufferPool& scratch, Passes passes = Passes::automatic,
                        AttentionStatistics* statistics = nullptr,
                        const BlockKernels* kernels = nullptr);

/// The loops of the best instruction set for this machine, or what TORCHLORE_KERNELS asks for (see
/// `chosen_set`).
const BlockKernels& block_kernels();

/// Those of "portable", "avx2", "avx512" or "avx512bf16", or nullptr where this build or machine lacks
/// them.
const BlockKernels* block_kernels(const char* name);

}  // namespace torchlore::kernels
