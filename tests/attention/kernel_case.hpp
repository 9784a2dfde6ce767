#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "../../src/attention/kernels/attention_kernels.hpp"
#include "../../src/core/buffer_pool.hpp"
#include "../../src/core/kernels/element_of.hpp"

/// One attention call on random data, by the block kernels and by plain tensor operations.
namespace torchlore::testing {

/// The tiles of a bool mask [queries, keys], found by looking at every pair.
inline TileLayout tiles_of(const at::Tensor& mask, int64_t tile = 64) {
  const auto seen = mask.contiguous();
  const auto* at = seen.const_data_ptr<bool>();
  TileLayout layout;
  layout.queries = mask.size(0);
  layout.keys = mask.size(1);
  layout.tile = tile;
  const int64_t rows = (layout.queries + tile - 1) / tile,
                columns = (layout.keys + tile - 1) / tile;
  std::vector<std::vector<std::pair<int32_t, int32_t>>> by_column(static_cast<size_t>(columns));
  layout.row_start.push_back(0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      TileBits bits;
      bool any = false, all = true;
      for (int64_t q = i * tile; q < std::min((i + 1) * tile, layout.queries); ++q) {
        for (int64_t k = j * tile; k < std::min((j + 1) * tile, layout.keys); ++k) {
          const bool visible = at[q * layout.keys + k];
          any |= visible;
          all &= visible;
          if (!visible) continue;
          bits.by_key[static_cast<size_t>(k % tile)] |= uint64_t{1} << (q % tile);
          bits.by_query[static_cast<size_t>(q % tile)] |= uint64_t{1} << (k % tile);
        }
      }
      if (!any) continue;
      if (!all) layout.bits.push_back(bits);
      const int32_t kind = all ? TileLayout::kFull : static_cast<int32_t>(layout.bits.size()) - 1;
      layout.column.push_back(static_cast<int32_t>(j));
      layout.kind.push_back(kind);
      by_column[static_cast<size_t>(j)].emplace_back(static_cast<int32_t>(i), kind);
    }
    layout.row_start.push_back(static_cast<int32_t>(layout.column.size()));
  }
  layout.column_start.push_back(0);
  for (const auto& column : by_column) {
    for (const auto& [row, kind] : column) {
      layout.row.push_back(row);
      layout.column_kind.push_back(kind);
    }
    layout.column_start.push_back(static_cast<int32_t>(layout.row.size()));
  }
  return layout;
}

inline kernels::Rows rows_of(const at::Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

/// What attention gives for an output gradient.
struct KernelResult {
  at::Tensor out, log_sum_exp, grad_q, grad_k, grad_v;
};

/// Inputs, and what is done with them.
struct KernelCase {
  at::Tensor q, k, v, grad_out;
  at::Tensor mask;  ///< bool [queries, keys], or [batch, heads, queries, keys]
  double scale = 0.125;
  at::Tensor bias = {};    ///< float32 [batch, heads, queries, keys] or broadcast to it
  at::Tensor slopes = {};  ///< float32 [heads]
  int64_t query_offset = 0;
  double dropout = 0;
  uint64_t seed = 7;
  at::Tensor grad_log_sum_exp = {};
  int64_t tile = 64;

  at::Tensor full_mask() const { return mask.expand({q.size(0), q.size(1), q.size(2), k.size(2)}); }

  /// The same numbers in another dtype.
  KernelCase to(at::ScalarType dtype) const {
    KernelCase c = *this;
    for (auto* t : {&c.q, &c.k, &c.v, &c.grad_out}) *t = t->to(dtype);
    return c;
  }
};

/// Standard normal inputs [batch, heads, rows, dim]; all pairs visible.
inline KernelCase random_case(int64_t batch, int64_t heads, int64_t key_heads, int64_t queries,
                              int64_t keys, int64_t dim, int64_t value_dim) {
  KernelCase c;
  c.q = at::randn({batch, heads, queries, dim}, at::kDouble);
  c.k = at::randn({batch, key_heads, keys, dim}, at::kDouble);
  c.v = at::randn({batch, key_heads, keys, value_dim}, at::kDouble);
  c.grad_out = at::randn({batch, heads, queries, value_dim}, at::kDouble);
  c.mask = at::ones({queries, keys}, at::kBool);
  c.scale = 1 / std::sqrt(static_cast<double>(dim));
  return c;
}

/// By plain tensor operations with the whole matrix of scores, in the inputs' dtype; gradients by
/// autograd. A query without keys gives 0 and -inf.
inline KernelResult eager(const KernelCase& c) {
  const auto leaf = [](const at::Tensor& t) { return t.detach().clone().requires_grad_(); };
  const auto q = leaf(c.q), k = leaf(c.k), v = leaf(c.v);
  const int64_t group = q.size(1) / k.size(1);
  const auto wide = [&](const at::Tensor& t) { return t.repeat_interleave(group, 1); };
  const auto mask = c.full_mask();
  auto hidden = mask.logical_not();
  auto scores = at::matmul(q * c.scale, wide(k).transpose(-2, -1));
  if (c.bias.defined()) {
    scores = scores + c.bias.to(scores.scalar_type());
    hidden = hidden.logical_or(c.bias == -INFINITY);
  }
  if (c.slopes.defined()) {
    const auto position = at::arange(q.size(2)) + c.query_offset;
    const auto distance = (position.unsqueeze(1) - at::arange(k.size(2))).abs();
    scores =
        scores - (c.slopes.to(at::kDouble).view({-1, 1, 1}) * distance).to(scores.scalar_type());
  }
  scores = scores.masked_fill(hidden, -INFINITY);
  const auto empty = hidden.all(-1, /*keepdim=*/true);
  const auto safe = scores.masked_fill(empty, 0);
  const auto lse = at::logsumexp(safe, -1);
  auto weights = at::softmax(safe, -1).masked_fill(empty, 0);
  if (c.dropout > 0) {
    auto kept = at::zeros_like(mask);
    for (int64_t b = 0; b < kept.size(0); ++b) {
      for (int64_t h = 0; h < kept.size(1); ++h) {
        auto* at = kept[b][h].data_ptr<bool>();
        for (int64_t i = 0; i < kept.size(2); ++i) {
          for (int64_t j = 0; j < kept.size(3); ++j) {
            at[i * kept.size(3) + j] = static_cast<double>(kernels::dropout_number(
                                           c.seed, b * kept.size(1) + h, i, j)) >= c.dropout;
          }
        }
      }
    }
    weights = weights * kept / (1 - c.dropout);
  }
  const auto out = at::matmul(weights, wide(v));
  auto loss = (out * c.grad_out).sum();
  if (c.grad_log_sum_exp.defined()) {
    loss = loss + (lse * c.grad_log_sum_exp).masked_fill(empty.squeeze(-1), 0).sum();
  }
  const auto grads = torch::autograd::grad({loss}, {q, k, v});
  return {out.detach(), lse.detach().masked_fill(empty.squeeze(-1), -INFINITY), grads[0], grads[1],
          grads[2]};
}

/// By the kernels.
class BlockAttention {
 public:
  explicit BlockAttention(const kernels::BlockKernels* kernels = nullptr) : kernels_(kernels) {}

  KernelResult run(const KernelCase& c, kernels::Passes passes = kernels::Passes::automatic) {
    prepare(c);
    KernelResult r;
    const auto like = [](const at::Tensor& t) { return at::full_like(t, NAN).contiguous(); };
    r.out = like(c.grad_out);
    r.log_sum_exp = at::full({c.q.size(0), c.q.size(1), c.q.size(2)}, NAN,
                             c.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    forward = {};
    kernels::attention_forward(problem_, rows_of(r.out), r.log_sum_exp.data_ptr(), scratch_,
                               &forward, kernels_);
    backward(c, r, passes);
    return r;
  }

  /// Gradients for a given output.
  void backward(const KernelCase& c, KernelResult& r, kernels::Passes passes) {
    const auto like = [](const at::Tensor& t) { return at::full_like(t, NAN).contiguous(); };
    r.grad_q = like(c.q);
    r.grad_k = like(c.k);
    r.grad_v = like(c.v);
    const auto grad_lse = c.grad_log_sum_exp.defined()
                              ? c.grad_log_sum_exp.to(r.log_sum_exp.scalar_type()).contiguous()
                              : at::Tensor();
    backward_counts = {};
    kernels::attention_backward(
        problem_,
        {.out = rows_of(r.out),
         .log_sum_exp = r.log_sum_exp.const_data_ptr(),
         .grad_out = rows_of(c.grad_out),
         .grad_log_sum_exp = grad_lse.defined() ? grad_lse.const_data_ptr() : nullptr,
         .grad_q = rows_of(r.grad_q),
         .grad_k = rows_of(r.grad_k),
         .grad_v = rows_of(r.grad_v)},
        scratch_, passes, &backward_counts, kernels_);
  }

  int64_t tiles_of_layouts() const {
    int64_t sum = 0;
    for (const auto* layout : pointers_) sum += layout->row_start.back();
    return sum;
  }

  kernels::AttentionStatistics forward, backward_counts;

 private:
  void prepare(const KernelCase& c) {
    const int64_t batch = c.q.size(0), heads = c.q.size(1);
    layouts_.clear();
    pointers_.clear();
    const bool shared = c.mask.dim() == 2;
    if (shared) layouts_.push_back(std::make_unique<TileLayout>(tiles_of(c.mask, c.tile)));
    for (int64_t i = 0; i < batch * heads; ++i) {
      if (!shared) {
        const auto mask = c.full_mask()[i / heads][i % heads];
        layouts_.push_back(std::make_unique<TileLayout>(tiles_of(mask, c.tile)));
      }
      pointers_.push_back(layouts_.back().get());
    }
    problem_ = {.element = kernels::element_of(c.q.scalar_type()),
                .batch = batch,
                .heads = heads,
                .key_heads = c.k.size(1),
                .queries = c.q.size(2),
                .keys = c.k.size(2),
                .head_dim = c.q.size(3),
                .value_dim = c.v.size(3),
                .q = rows_of(c.q),
                .k = rows_of(c.k),
                .v = rows_of(c.v),
                .layouts = pointers_.data(),
                .scale = c.scale,
                .query_offset = c.query_offset,
                .dropout = c.dropout,
                .dropout_seed = c.seed};
    if (c.slopes.defined()) problem_.alibi_slopes = c.slopes.const_data_ptr<float>();
    if (!c.bias.defined()) return;
    const auto bias = c.bias.expand({batch, heads, c.q.size(2), c.k.size(2)});
    problem_.bias = bias.const_data_ptr<float>();
    problem_.bias_batch_stride = bias.stride(0);
    problem_.bias_head_stride = bias.stride(1);
    problem_.bias_row_stride = bias.stride(2);
  }

  const kernels::BlockKernels* kernels_;
  std::vector<std::unique_ptr<TileLayout>> layouts_;
  std::vector<const TileLayout*> pointers_;
  kernels::AttentionProblem problem_;
  detail::BufferPool scratch_{1 << 26};
};

}  // namespace torchlore::testing
