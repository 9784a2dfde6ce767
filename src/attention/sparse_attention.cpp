#include "torchlore/attention/sparse_attention.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <mutex>

#include "attention_op.hpp"
#include "dense_attention.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using at::Tensor;

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, bool enable_gqa) {
  const auto check_rank = [](const char* name, const Tensor& x) {
    TORCH_CHECK_VALUE(x.defined(), name, " is an undefined tensor");
    TORCH_CHECK_VALUE(x.dim() == 4, name, " must have four dimensions, [batch, heads, tokens, ",
                      "dim], but its shape is ", x.sizes());
    TORCH_CHECK_VALUE(x.size(1) > 0, name, " has no heads: its shape is ", x.sizes());
  };
  check_rank("query", q);
  check_rank("key", k);
  check_rank("value", v);
  TORCH_CHECK_VALUE(q.device() == k.device() && q.device() == v.device(),
                    "query, key and value must be on the same device, but are on ", q.device(),
                    ", ", k.device(), " and ", v.device());
  TORCH_CHECK_VALUE(q.size(0) == k.size(0) && q.size(0) == v.size(0),
                    "query, key and value must have the same batch size, but have ", q.size(0),
                    ", ", k.size(0), " and ", v.size(0));
  TORCH_CHECK_VALUE(q.size(3) == k.size(3) && q.size(3) > 0,
                    "query and key must have the same head dimension, 1 or more, but have ",
                    q.size(3), " and ", k.size(3));
  TORCH_CHECK_VALUE(k.size(1) == v.size(1) && k.size(2) == v.size(2),
                    "key and value must have the same heads and tokens, but their shapes are ",
                    k.sizes(), " and ", v.sizes());
  TORCH_CHECK_VALUE(q.size(1) == k.size(1) || enable_gqa, "query has ", q.size(1),
                    " heads, but key and value ", k.size(1),
                    "; set enable_gqa if several query heads share one of theirs");
  TORCH_CHECK_VALUE(q.size(1) % k.size(1) == 0, "query's ", q.size(1), " heads cannot share key's ",
                    k.size(1), " evenly; their number must be a multiple");
}

void check_layout(const Tensor& q, const Tensor& k, const BlockLayout& layout) {
  TORCH_CHECK_VALUE(layout.queries() == q.size(2) && layout.keys() == k.size(2),
                    "the layout is for ", layout.queries(), " queries and ", layout.keys(),
                    " keys, but there are ", q.size(2), " and ", k.size(2));
  TORCH_CHECK_VALUE(layout.batch() == 1 || layout.batch() == q.size(0), "the layout is for ",
                    layout.batch(), " batch entries, but there are ", q.size(0));
  TORCH_CHECK_VALUE(layout.heads() == 1 || layout.heads() == q.size(1), "the layout is for ",
                    layout.heads(), " heads, but query has ", q.size(1));
}

/// The bias with four dimensions.
std::optional<Tensor> checked_bias(const std::optional<Tensor>& bias, const Tensor& q,
                                   const Tensor& k) {
  if (!bias || !bias->defined()) return std::nullopt;
  TORCH_CHECK_TYPE(bias->is_floating_point(), "the bias must be of a floating dtype, but is ",
                   bias->scalar_type(), "; visible pairs are the layout's to say");
  TORCH_CHECK_VALUE(bias->device() == q.device(), "the bias is on ", bias->device(),
                    ", but query on ", q.device());
  const at::DimVector target{q.size(0), q.size(1), q.size(2), k.size(2)};
  bool fits = bias->dim() <= 4;
  for (int64_t i = 1; fits && i <= bias->dim(); ++i) {
    fits = bias->size(-i) == 1 || bias->size(-i) == target[static_cast<size_t>(4 - i)];
  }
  TORCH_CHECK_VALUE(fits, "the bias has shape ", bias->sizes(), ", which does not broadcast to ",
                    at::IntArrayRef(target));
  Tensor result = *bias;
  while (result.dim() < 4) result = result.unsqueeze(0);
  return result;
}

std::optional<Tensor> checked_slopes(const SparseAttentionOptions& options, const Tensor& q,
                                     const Tensor& k) {
  const auto& slopes = options.alibi_slopes;
  if (!slopes || !slopes->defined()) return std::nullopt;
  TORCH_CHECK_TYPE(slopes->is_floating_point(),
                   "alibi_slopes must be of a floating dtype, but are ", slopes->scalar_type());
  TORCH_CHECK_VALUE(slopes->dim() == 1 && slopes->size(0) == q.size(1),
                    "alibi_slopes must have one element per query head, [", q.size(1),
                    "], but their shape is ", slopes->sizes());
  TORCH_CHECK_VALUE(slopes->device() == q.device(), "alibi_slopes are on ", slopes->device(),
                    ", but query on ", q.device());
  TORCH_CHECK_NOT_IMPLEMENTED(!slopes->requires_grad(),
                              "alibi_slopes get no gradient, but require one; detach them, or give "
                              "the distances as a bias");
  TORCH_CHECK_VALUE(options.align || q.size(2) == k.size(2), "there are ", q.size(2),
                    " queries and ", k.size(2),
                    " keys; set align, which says where query 0 stands for alibi_slopes");
  return slopes;
}

double checked_scale(const std::optional<double>& scale, int64_t head_dim) {
  if (!scale) return 1 / std::sqrt(static_cast<double>(head_dim));
  TORCH_CHECK_VALUE(std::isfinite(*scale), "scale must be finite, but is ", *scale);
  return *scale;
}

void check_dropout(double dropout) {
  TORCH_CHECK_VALUE(dropout >= 0 && dropout < 1, "dropout must lie in [0, 1), but is ", dropout);
}

/// One draw decides on all the weights of a call.
int64_t draw_seed(const std::optional<at::Generator>& given) {
  auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(
      given, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return static_cast<int64_t>(generator->random64());
}

struct Call {
  attention::Inputs inputs;
  attention::Settings settings;
};

Call checked_call(const Tensor& q, const Tensor& k, const Tensor& v, const BlockLayout& layout,
                  const SparseAttentionOptions& options) {
  check_shapes(q, k, v, options.enable_gqa);
  check_layout(q, k, layout);
  check_dropout(options.dropout);
  Call call{{q, k, v, checked_bias(options.bias, q, k), checked_slopes(options, q, k)}, {}};
  auto& settings = call.settings;
  settings.scale = checked_scale(options.scale, q.size(3));
  settings.query_offset = options.align == Align::bottom_right ? k.size(2) - q.size(2) : 0;
  settings.pattern = c10::make_intrusive<attention::Pattern>(layout);
  if (options.dropout > 0) {
    settings.dropout = options.dropout;
    settings.dropout_seed = draw_seed(options.generator);
  }
  return call;
}

}  // namespace

Tensor sparse_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                        const BlockLayout& layout, const SparseAttentionOptions& options) {
  const auto call = checked_call(query, key, value, layout, options);
  if (options.allow_dense && attention::dense_is_faster(call.inputs, call.settings)) {
    return attention::dense_attention(call.inputs, call.settings);
  }
  return std::get<0>(attention::call_op(call.inputs, call.settings));
}

SparseAttentionResult sparse_attention_with_lse(const Tensor& query, const Tensor& key,
                                                const Tensor& value, const BlockLayout& layout,
                                                const SparseAttentionOptions& options) {
  const auto call = checked_call(query, key, value, layout, options);
  auto [output, log_sum_exp] = attention::call_op(call.inputs, call.settings);
  return {output, log_sum_exp};
}

}  // namespace torchlore
