#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "torchlore/attention/mask.hpp"

/// Sparse attention in models whose source is not touched.
namespace torchlore {

/// The shape of an attention that a `SparseAttentionScope` meets.
struct AttentionShape {
  int64_t batch = 1;    ///< batch entries; with `nn::MultiheadAttention` see `heads`
  int64_t heads = 1;    ///< heads of the queries; 1 where batch and heads come as one number
  int64_t queries = 0;  ///< length of the query sequence
  int64_t keys = 0;     ///< length of the key sequence

  /// Whether all are equal.
  bool operator==(const AttentionShape&) const = default;
};

/// How an attention ran inside a `SparseAttentionScope`.
enum class AttentionPath : uint8_t {
  sparse,      ///< by `sparse_attention`, with the scope's mask
  left_alone,  ///< as the model wrote it, without the scope's mask: `reason` says why
};

/// The name, such as "sparse".
std::string to_string(AttentionPath path);

/// Attentions of one kind that a `SparseAttentionScope` saw.
struct SeenAttention {
  AttentionPath path = AttentionPath::sparse;  ///< how they ran
  std::string ops = {};       ///< "scaled_dot_product_attention" or "bmm, softmax, bmm"
  AttentionShape shape = {};  ///< of each
  double density = 1;         ///< share of the blocks that the mask touches; see `BlockLayout`
  std::string reason = {};    ///< why they did not run sparse
  int64_t count = 0;          ///< how many there were, recomputed ones included
};

/// Prints a line such as "12 x scaled_dot_product_attention [8, 4, 1024, 1024]: sparse, density 0.1".
std::ostream& operator<<(std::ostream& out, const SeenAttention& seen);

/// What a `SparseAttentionScope` does when an attention cannot run sparse.
enum class NotSparse : uint8_t {
  warn,   ///< warns, once for each reason
  error,  ///< throws c10::NotImplementedError from the op that shows it
  allow,  ///< only `seen` tells
};

/// Options of `SparseAttentionScope`.
struct SparseAttentionScopeOptions {
  /// Heads of the model's `nn::MultiheadAttention` layers, whose ops tell batch and heads as one
  /// number. Needed only for masks that differ between heads or batch entries; 0: not said.
  int64_t heads = 0;
  /// Which attentions are meant, by their shape; without it all. Others are left alone. It must
  /// give the same answer when a checkpointed block is recomputed.
  std::function<bool(const AttentionShape&)> where = {};
  /// What to do when one that is meant cannot run sparse.
  NotSparse not_sparse = NotSparse::warn;
  int64_t block_size = 64;  ///< of the layouts: 32, 64 or 128
  /// Whether LibTorch's dense kernel may take an attention that it was measured to be faster for; see
  /// `SparseAttentionOptions::allow_dense`.
  bool allow_dense = true;
};

/// Gives the attention of any model a mask, and skips what the mask leaves out.
///
/// ```cpp
/// torchlore::SparseAttentionScope sparse(mask::causal() & mask::window(512));
/// loss = model->forward(tokens);
/// ```
/// Inside the scope an attention sees the pairs that both the scope's mask and its own one show: its
/// own are `is_causal`, `attn_mask` and `key_padding_mask`. Scale, dropout and grouped heads are the
/// model's. A query that sees no key gets zeros.
///
/// These run sparse:
/// - `scaled_dot_product_attention`;
/// - `nn::MultiheadAttention`, and with it `nn::Transformer`: a bmm, optional masks, softmax, dropout
///   and a second bmm. The scores are not computed until it is known what becomes of them. If any op
///   but these asks for them, they are computed as the model wrote it, and the attention is left
///   alone, which `seen` and a warning tell. Weights that the layer returns are computed when an op
///   reads them: then they are those of the sparse attention.
///
/// @note It is an `OpMode`, with what that says of threads, nesting and order; recomputation by
///       `checkpoint` runs as the forward did, also when the scope is over. Host syncs: 0 on the CPU.
/// @note In inference mode LibTorch does not tell when a tensor is written, so `query`, `key` and
///       masks of an `nn::MultiheadAttention` are copied. The same layer without inference mode
///       throws if they are written between the two products.
class [[nodiscard]] SparseAttentionScope {
 public:
  /// Enters the scope.
  /// @throws c10::ValueError for options that make no sense; c10::Error as `OpMode`.
  explicit SparseAttentionScope(MaskSpec spec, SparseAttentionScopeOptions options = {});
  ~SparseAttentionScope();

  SparseAttentionScope(const SparseAttentionScope&) = delete;
  SparseAttentionScope(SparseAttentionScope&&) = delete;
  SparseAttentionScope& operator=(const SparseAttentionScope&) = delete;
  SparseAttentionScope& operator=(SparseAttentionScope&&) = delete;

  /// What the scope saw so far, in the order of first sight; equal ones are counted together. Of more
  /// than a thousand kinds the first ones.
  std::vector<SeenAttention> seen() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace torchlore
