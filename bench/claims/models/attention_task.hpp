#pragma once

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../harness/timing.hpp"
#include "torchlore/attention/sparse_attention.hpp"

/// Attention on random numbers, sparse and dense, as the claims of attention time it.
namespace torchlore::claims::models {

/// A mask and the share of 64 × 64 blocks that it touches.
struct TimedMask {
  std::string name = {};
  BlockLayout layout;

  double density() const { return layout.density(); }
  std::string text() const { return fmt::format("{} ({:.3f})", name, density()); }
};

inline TimedMask random_mask(int64_t queries, int64_t keys, double share) {
  const auto blocks = static_cast<int64_t>(std::lround(share * static_cast<double>(keys) / 64));
  const auto spec =
      mask::random_blocks(std::max<int64_t>(1, blocks), 5).aligned(Align::bottom_right);
  return {"random blocks", BlockLayout::build(spec, queries, keys)};
}

inline TimedMask window_mask(int64_t n, double share) {
  const auto width = static_cast<int64_t>(std::lround(share * static_cast<double>(n)));
  return {"window", BlockLayout::build(mask::causal() & mask::window(width), n, n)};
}

inline TimedMask causal_mask(int64_t n) {
  return {"causal", BlockLayout::build(mask::causal(), n, n)};
}
inline TimedMask dense_mask(int64_t queries, int64_t keys) {
  return {"dense", BlockLayout::build(mask::all(), queries, keys)};
}

/// One batch entry; 8 heads of 64 dims unless said otherwise.
struct AttentionShape {
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t heads = 8;
  int64_t key_heads = 8;
  int64_t dim = 64;
};

/// Inputs, and the two ways through them.
class AttentionTask {
 public:
  AttentionTask(const AttentionShape& shape, at::ScalarType dtype)
      : shape_(shape),
        query_(numbers(shape.heads, shape.queries, dtype)),
        key_(numbers(shape.key_heads, shape.keys, dtype)),
        value_(numbers(shape.key_heads, shape.keys, dtype)),
        upstream_(at::randn({1, shape.heads, shape.queries, shape.dim}, dtype)) {}

  at::Tensor sparse(const BlockLayout& layout) const {
    return sparse_attention(query_, key_, value_, layout,
                            {.enable_gqa = grouped(), .allow_dense = false});
  }
  at::Tensor dense(bool is_causal = false) const {
    return at::scaled_dot_product_attention(query_, key_, value_, {}, 0, is_causal, std::nullopt,
                                            grouped());
  }
  void backward(const at::Tensor& out) const {
    torch::autograd::grad({out}, {query_, key_, value_}, {upstream_}, /*retain_graph=*/true);
  }

  Contender sparse_forward(const TimedMask& mask) const {
    return timed(mask.text(), [this, &mask] {
      const at::NoGradGuard no_grad;
      sparse(mask.layout);
    });
  }
  Contender dense_forward(bool is_causal = false) const {
    return timed(is_causal ? "SDPA, causal" : "SDPA", [this, is_causal] {
      const at::NoGradGuard no_grad;
      dense(is_causal);
    });
  }
  Contender sparse_backward(const TimedMask& mask) const {
    return timed(mask.text(), [this, out = sparse(mask.layout)] { backward(out); });
  }
  Contender dense_backward() const {
    return timed("SDPA", [this, out = dense()] { backward(out); });
  }

 private:
  bool grouped() const { return shape_.heads != shape_.key_heads; }
  at::Tensor numbers(int64_t heads, int64_t rows, at::ScalarType dtype) const {
    return at::randn({1, heads, rows, shape_.dim}, dtype).requires_grad_();
  }

  AttentionShape shape_;
  at::Tensor query_, key_, value_, upstream_;
};

inline const char* name_of(at::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : "bfloat16";
}

/// A ratio to dense attention that may grow with the share of touched blocks.
struct DensityBar {
  double per_density = 0;
  double fixed = 0;

  double at(double density) const { return per_density * density + fixed; }
};

/// Estimates over a bar.
inline Estimate over(const Estimate& measured, double bar) {
  return {measured.value / bar, measured.low / bar, measured.high / bar};
}

/// Reports the contender that is nearest to its bar (1), out of all masks of one length: contender 0
/// is dense attention, and i + 1 has mask i. The note lists every ratio.
inline void report_nearest(Context& context, Line line, const std::vector<TimedMask>& masks,
                           const DensityBar& bar, const std::vector<std::vector<double>>& seconds) {
  std::string nearest;
  for (size_t i = 0; i < masks.size(); ++i) {
    const auto estimate = ratio(seconds[i + 1], seconds[0]);
    const double allowed = bar.at(masks[i].density());
    line.note += fmt::format("{}{}: {:.4f} of {:.4f}", i == 0 ? "" : "; ", masks[i].text(),
                             estimate.value, allowed);
    if (i > 0 && estimate.value / allowed <= line.measured.value) continue;
    line.measured = over(estimate, allowed);
    nearest = masks[i].text();
  }
  line.setting += "; nearest to its bar: " + nearest;
  line.unit = "of the bar";
  line.bar = 1;
  context.report(line);
}

}  // namespace torchlore::claims::models
