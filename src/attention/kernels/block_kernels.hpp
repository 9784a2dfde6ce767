#pragma once

#include <cstdint>

#include "../../core/kernels/philox_kernels.hpp"

/// The loops of tile-sparse attention on raw memory. block_kernels.inc is compiled once per instruction
/// set; `block_kernels()` picks the best set that this machine has.
namespace torchlore::kernels {

/// A TileLayout as raw memory: code compiled for another instruction set must not instantiate the
/// standard library's templates.
struct TilePattern {
  int64_t queries = 0;
  int64_t keys = 0;
  const int32_t* row_start = nullptr;
  const int32_t* column = nullptr;
  const int32_t* kind = nullptr;
  const int32_t* column_start = nullptr;
  const int32_t* row = nullptr;
  const int32_t* column_kind = nullptr;
  const uint64_t* bits = nullptr;  ///< kBitmapWords each: 64 by key, 64 by query
};

constexpr int64_t kBitmapWords = 128;
constexpr int64_t kMaxDim = 256;

/// Rows of elements, of dim contiguous ones.
struct Matrix {
  void* data = nullptr;
  int64_t stride = 0;  ///< in elements
};

/// Words of Philox, and what they decide on.
struct Dropout {
  void (*philox)(uint32_t* words, int64_t groups,
                 PhiloxCounter counter) = nullptr;  ///< nullptr: none
  PhiloxCounter counter = {};                       ///< step, stream and key of this head
  uint32_t threshold = 0;  ///< a weight is kept if its word's high 24 bits are not below
  double growth = 1;       ///< of the weights that are kept
};

/// One (batch entry, head). Scalars below are float, or double for float64.
struct AttentionHead {
  TilePattern pattern = {};
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  double scale = 1;
  double slope = 0;             ///< of ALiBi
  int64_t query_offset = 0;     ///< position of query 0 among the keys
  const float* bias = nullptr;  ///< [queries, keys], or nullptr
  int64_t bias_stride = 0;
  Dropout dropout = {};
  Matrix q = {};
  Matrix k = {};
  Matrix v = {};
  Matrix out = {};
  void* log_sum_exp = nullptr;             ///< [queries] scalars
  const void* grad_log_sum_exp = nullptr;  ///< [queries] scalars, or nullptr
  Matrix grad_out = {};
  Matrix grad_q = {};
  Matrix grad_k = {};
  Matrix grad_v = {};
  Matrix sum_k = {};  ///< scalars, rows padded to `padded(dim)`: what dK and dV are added up in, or
  Matrix sum_v = {};  ///< without data, where only dQ is wanted
  /// [2][padded queries] scalars or nullptr: what the pass by rows finds out about the queries, and
  /// the pass by columns reads.
  void* row_terms = nullptr;
};

/// The loops of one element type and tile size. Those of attention return how many tiles they computed.
struct TileKernels {
  /// Output and log-sum-exp of one query tile.
  int64_t (*forward)(const AttentionHead& head, int64_t query_tile, void* scratch) = nullptr;
  /// dQ of the query tiles [first, last), and what they add to dK and dV.
  int64_t (*backward_rows)(const AttentionHead& head, int64_t first, int64_t last,
                           void* scratch) = nullptr;
  /// dK and dV of one key tile, summed over the heads of a group.
  int64_t (*backward_columns)(const AttentionHead* heads, int64_t count, int64_t key_tile,
                              void* scratch) = nullptr;
  /// to = the sum of `count` parts of rows × dim scalars, `part_stride` scalars apart, rounded once.
  void (*round_sum)(const Matrix& part, int64_t count, int64_t part_stride, int64_t rows,
                    int64_t dim, const Matrix& to) = nullptr;
  int64_t forward_scratch = 0;  ///< in bytes; scratch is aligned to 64
  int64_t backward_scratch = 0;
  /// Whether dK and dV of this dim may be summed where they are wanted.
  bool (*sums_in_place)(int64_t dim) = nullptr;
};

/// Query tiles that share one pass over the keys in `backward_rows`.
constexpr int64_t kGroup = 2;

/// Elements that rows of sums and of packed words are padded to: the longest vector. (static: the
/// linker must not pick the copy that was compiled for another instruction set.)
static constexpr int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }

struct BlockKernels {
  /// By `Element` (f16, bf16, f32, f64), and tile of 32 or 64.
  TileKernels tiles[4][2] = {};
  const char* name = nullptr;
};

}  // namespace torchlore::kernels
