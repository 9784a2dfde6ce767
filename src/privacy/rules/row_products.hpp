#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "layer_rule.hpp"

namespace torchlore::detail {

/// Gradients that are sums of outer products over the rows of an example: gᵀx. Without x they are the sums of
/// g, as those of a bias.
struct RowProducts {
  at::Tensor x = {};  ///< [B, T, d], or undefined
  at::Tensor g = {};  ///< [B, T, p]

  /// [B, p, d]; without x [B, p].
  at::Tensor formed() const;
  /// Σ over pairs of rows of (x·x')(g·g'): [B] float64.
  at::Tensor ghost_norms() const;
  /// Σᵢ factorsᵢ·(gᵢᵀxᵢ): [p, d] or [p].
  at::Tensor weighted_sum(const at::Tensor& factors) const;
};

/// A rule that works out rows first. `take` of a derived rule fills in one `RowProducts` per slot.
class RowProductRule : public LayerRule {
 public:
  using LayerRule::LayerRule;

  RuleCost cost(size_t slot) const override;
  InstantiatedGradients instantiate(size_t slot) override;
  at::Tensor ghost_norms(size_t slot) override { return products_[slot].ghost_norms(); }
  at::Tensor weighted_sum(size_t slot, const at::Tensor& factors) override;
  void drop(const at::Tensor& dropped) override;

 protected:
  std::vector<RowProducts> products_;
};

}  // namespace torchlore::detail
