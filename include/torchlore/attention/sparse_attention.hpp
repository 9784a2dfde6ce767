#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>

#include "torchlore/attention/block_layout.hpp"

/// Attention that computes only the tiles which its mask touches, forward and backward.
namespace torchlore {

/// Settings of `sparse_attention`; checked when it is called.
struct SparseAttentionOptions {
  /// Factor of the scores q·k; without it 1 / sqrt(D), as in LibTorch.
  std::optional<double> scale = std::nullopt;
  /// Lets key and value have fewer heads than query: each serves H / H_k neighbouring query heads.
  bool enable_gqa = false;
  /// Added to the scaled scores: any floating dtype, a shape that broadcasts to [B, H, T, S]. On the
  /// CPU it is read as float32 unless the inputs are float64. Where it requires a gradient it gets
  /// one, by LibTorch's own ops on the tiles, which is slower.
  std::optional<at::Tensor> bias = std::nullopt;
  /// One slope per query head, [H], read as float32: -slope · |distance in positions| is added to
  /// the scaled scores (ALiBi). Slopes get no gradient.
  std::optional<at::Tensor> alibi_slopes = std::nullopt;
  /// Where query 0 stands among the keys, for the distances of `alibi_slopes`. It must be said if the
  /// lengths differ, and is not used otherwise.
  std::optional<Align> align = std::nullopt;
  /// Probability that a weight is set to zero, [0, 1); the others grow by 1 / (1 - dropout). Which
  /// ones is a function of one draw from the generator and of (batch, head, query, key): neither
  /// the layout, nor the number of threads, nor the device changes it.
  double dropout = 0;
  /// The CPU generator that dropout's draw comes from; without it LibTorch's default one.
  std::optional<at::Generator> generator = std::nullopt;
  /// Whether `at::scaled_dot_product_attention` may run instead, where it was measured to be faster
  /// and computes the same: on CPUs without AVX2, at a density of 0.4 or more, up to 2^24 pairs. It
  /// never runs when the log-sum-exp is asked for.
  bool allow_dense = true;
};

/// What `sparse_attention_with_lse` returns.
struct SparseAttentionResult {
  at::Tensor output = {};  ///< [B, H, T, E], of the inputs' dtype, in memory ordered as query is
  /// [B, H, T], float32 (float64 for such inputs): the natural logarithm of the sum of the exponentials
  /// of a query's scores; -inf for a query without keys. Differentiable.
  at::Tensor log_sum_exp = {};
};

/// Attention over the (query, key) pairs that a layout shows: softmax(query keyᵀ scale) value, in
/// which all other scores are -inf. Tiles that the layout does not list are not computed.
///
/// ```cpp
/// const auto spec = tl::mask::causal() & (tl::mask::window(512) | tl::mask::sinks(4));
/// const auto layout = tl::BlockLayout::build(spec, q.size(2), k.size(2));
/// const auto out = tl::sparse_attention(q, k, v, layout);
/// ```
/// A query that sees no key gets zeros, and passes no gradient. NaN or infinity in keys and values
/// that no query of a tile sees stays unseen; NaN in a query stays in its row.
///
/// It is one op of the dispatcher, `torchlore::sparse_attention`: an `OpMode` sees it, autocast casts
/// its inputs as those of LibTorch's own attention, `checkpoint` and `ActivationBudget` recompute it
/// with the same dropout. First derivatives come from the kernels, or on other devices than the CPU
/// from LibTorch's ops on gathered tiles, and so do second ones, which keep every tile's weights.
/// @param query   float tensor [B, H, T, D]: float32, bfloat16, float16 or float64; any strides.
/// @param key     [B, H, S, D], or [B, H_k, S, D] with `enable_gqa`; dtype and device of query.
/// @param value   [B, H, S, E], or [B, H_k, S, E]; dtype and device of query.
/// @param layout  for T queries and S keys; its batch is 1 or B, its heads are 1 or H.
/// @param options see SparseAttentionOptions.
/// @return [B, H, T, E]; empty if B, H, T or E is 0.
/// @throws c10::ValueError for shapes, lengths or options that do not fit; c10::TypeError for dtypes;
///         c10::NotImplementedError if `alibi_slopes` requires a gradient.
/// @note O(visible tiles · (D + E)) time; memory beyond inputs and outputs O(T + S) on the CPU. Sums
///       run in float32 (float64 for such inputs). The same bits each time; gradients, too, at any
///       number of threads up to B · H_k, and the output at any. Host syncs: 0 on the CPU; elsewhere
///       the tiles' indices are copied to the device.
at::Tensor sparse_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const BlockLayout& layout, const SparseAttentionOptions& options = {});

/// The same with the log-sum-exp of each query, for merging attention over disjoint sets of keys.
/// @param query   as there.
/// @param key     as there.
/// @param value   as there.
/// @param layout  as there.
/// @param options as there; `allow_dense` has no effect.
/// @return output and log_sum_exp.
/// @throws as there.
SparseAttentionResult sparse_attention_with_lse(const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const BlockLayout& layout,
                                                const SparseAttentionOptions& options = {});

}  // namespace torchlore
