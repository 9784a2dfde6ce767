#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torchlore/attention/block_layout.hpp"
#include "torchlore/attention/sparse_attention_scope.hpp"
#include "torchlore/intercept/op_handler.hpp"

namespace torchlore::attention {

/// An attention in four dimensions, as `sparse_attention` takes it.
struct Attention {
  at::Tensor query;                               ///< [B, H, T, D]
  at::Tensor key;                                 ///< [B, H, S, D]
  at::Tensor value;                               ///< [B, H, S, E]
  std::optional<at::Tensor> bias = std::nullopt;  ///< broadcasts to [B, H, T, S]
  std::optional<double> scale = std::nullopt;
  bool enable_gqa = false;
  bool is_causal = false;
  double dropout = 0;
  std::optional<uint64_t> dropout_seed = std::nullopt;  ///< without it one is drawn
  bool merged = false;  ///< heads is 1 because batch and heads came as one

  AttentionShape shape() const {
    return {query.size(0), query.size(1), query.size(2), key.size(2)};
  }
};

/// Why a call cannot run sparse; empty if it can. What LibTorch refuses is left to its own errors.
std::string obstacle(const AttentionCall& call);

/// A call without obstacles. `heads` are those of a query [B H, T, D]; 0: not known.
Attention attention_of(const AttentionCall& call, int64_t heads);

/// Runs `sparse_attention`.
at::Tensor run_sparse(const Attention& attention, const BlockLayout& layout, bool allow_dense);

/// A mask [T, S], [N, T, S] or [.., B, H, T, S] (each 1 where it broadcasts) that was written for a
/// tensor of `rank` dimensions, in four dimensions; N is B H.
at::Tensor mask_in_four(const at::Tensor& mask, int64_t rank, int64_t batch, int64_t heads);

/// What is added to scores for a mask: 0 where it is true, -inf elsewhere.
at::Tensor bias_of(const at::Tensor& visible);

/// What runs inside a `SparseAttentionScope`.
class ScopeHandler : public OpHandler, public std::enable_shared_from_this<ScopeHandler> {
 public:
  ScopeHandler(MaskSpec spec, SparseAttentionScopeOptions options);

  at::Tensor scaled_dot_product_attention(const AttentionCall& call) override;
  at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) override;
  at::Tensor softmax(const at::Tensor& input, int64_t dim,
                     std::optional<at::ScalarType> dtype) override;
  at::Tensor dropout(const at::Tensor& input, double p, bool train) override;

  const SparseAttentionScopeOptions& options() const { return options_; }

  /// Whether the scope is meant for attentions of this shape.
  bool meant(const AttentionShape& shape) const;
  /// The mask for one attention. @throws c10::ValueError if it cannot serve the shape.
  BlockLayout layout_of(const Attention& attention) const;
  /// Runs it, and writes it down. Returns [B, H, T, E].
  at::Tensor run(const Attention& attention, const BlockLayout& layout, const std::string& ops);

  /// Writes down an attention that is left alone because of its shape.
  void left_out(const std::string& ops, const AttentionShape& shape);
  /// Writes down one that is left alone because it cannot run sparse, and does what is to be done then.
  /// @throws c10::NotImplementedError if that is asked for.
  void left_alone(const std::string& ops, const AttentionShape& shape, const std::string& reason);
  std::vector<SeenAttention> seen() const;

 private:
  bool write_down(SeenAttention one);
  void remember_weights(const at::Tensor& weights);
  bool are_weights(const at::Tensor& tensor);

  const MaskSpec spec_;
  const MaskSpec causal_spec_;  ///< and `is_causal`
  const SparseAttentionScopeOptions options_;
  mutable std::mutex mutex_;
  std::vector<SeenAttention> seen_;
  /// Results of the last softmaxes that were computed, to tell an attention that was not recognised.
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> computed_weights_;
};

}  // namespace torchlore::attention
