#include "scope_handler.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ExpandUtils.h>
#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <variant>

#include "deferred_scores.hpp"
#include "mask_node.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore::attention {
namespace {

constexpr const char* kOneOp = "scaled_dot_product_attention";
constexpr const char* kThreeOps = "bmm, softmax, bmm";
constexpr size_t kRememberedWeights = 8;
constexpr size_t kSeenKinds = 1000;  // lengths may grow without end, as in generation

/// […, T, D] with as many leading dimensions as `leading` has, these broadcast but for the heads.
at::Tensor in_four(const at::Tensor& x, at::IntArrayRef leading) {
  auto sizes = leading.vec();
  if (!sizes.empty()) sizes.back() = x.size(-3);
  sizes.push_back(x.size(-2));
  sizes.push_back(x.size(-1));
  const auto all = x.expand(sizes);
  return leading.size() == 2 ? all : all.flatten(0, static_cast<int64_t>(leading.size()) - 2);
}

/// [N, T, D] -> [B, H, T, D], and [T, D] -> [1, 1, T, D].
at::Tensor split_heads(const at::Tensor& x, int64_t heads) {
  if (x.dim() == 2) return x.unsqueeze(0).unsqueeze(0);
  return x.unflatten(0, {x.size(0) / heads, heads});
}

/// Whether a mask shows no key after the query, for sequences of one length: then `is_causal` adds
/// nothing, and the layouts that the mask keeps serve every scope.
bool shows_no_future(const MaskSpec& spec) {
  const auto& value = spec.node().value;
  if (std::holds_alternative<nodes::Causal>(value)) return true;
  const auto* all = std::get_if<nodes::And>(&value);
  return all != nullptr && std::any_of(all->parts.begin(), all->parts.end(), shows_no_future);
}

at::Tensor to_bias(const at::Tensor& mask) {
  return mask.scalar_type() == at::kBool ? bias_of(mask) : mask;
}

/// Where batch and heads come as one number.
Attention from_merged(const AttentionCall& call, int64_t heads_option) {
  const int64_t n = call.query.dim() == 2 ? 1 : call.query.size(0);
  const int64_t heads = heads_option > 0 && n % heads_option == 0 ? heads_option : 1;
  Attention a{.query = split_heads(call.query, heads),
              .key = split_heads(call.key, heads),
              .value = split_heads(call.value, heads),
              .merged = heads_option == 0 && call.query.dim() == 3};
  if (call.attn_mask) {
    a.bias = mask_in_four(to_bias(*call.attn_mask), call.query.dim(), n / heads, heads);
  }
  return a;
}

/// Where they come apart, perhaps with more dimensions before them.
Attention from_apart(const AttentionCall& call) {
  const auto leading_of = [](const at::Tensor& x) { return x.sizes().slice(0, x.dim() - 3); };
  auto leading = at::infer_size(leading_of(call.query), leading_of(call.key));
  leading = at::infer_size(leading, leading_of(call.value));
  leading.push_back(call.query.size(-3));
  Attention a{.query = in_four(call.query, leading),
              .key = in_four(call.key, leading),
              .value = in_four(call.value, leading)};
  if (!call.enable_gqa && a.key.size(1) == 1) {  // one head that broadcasts
    a.key = a.key.expand({-1, a.query.size(1), -1, -1});
    a.value = a.value.expand({-1, a.query.size(1), -1, -1});
  }
  if (!call.attn_mask) return a;
  auto mask = to_bias(*call.attn_mask);
  if (mask.dim() > 4) {
    auto sizes = leading;
    sizes.push_back(mask.size(-2));
    sizes.push_back(mask.size(-1));
    sizes[leading.size() - 1] = mask.size(-3);
    mask = mask.expand(sizes).flatten(0, static_cast<int64_t>(leading.size()) - 2);
  }
  a.bias = mask_in_four(mask, 4, a.query.size(0), a.query.size(1));
  return a;
}

}  // namespace

Attention attention_of(const AttentionCall& call, int64_t heads_option) {
  auto a = call.query.dim() >= 4 ? from_apart(call) : from_merged(call, heads_option);
  a.scale = call.scale;
  a.enable_gqa = call.enable_gqa;
  a.is_causal = call.is_causal;
  a.dropout = call.dropout_p;
  return a;
}

std::string obstacle(const AttentionCall& call) {
  if (call.query.is_nested() || call.key.is_nested()) return "its tensors are nested";
  const auto dims = {call.query.dim(), call.key.dim(), call.value.dim()};
  const auto [low, high] = std::minmax(dims);
  if (low < 2 || low != high) return "query, key and value differ in their number of dimensions";
  if (!call.query.is_floating_point()) return "its tensors are no floating point numbers";
  if (call.is_causal && call.attn_mask) return "is_causal and attn_mask exclude each other";
  return {};
}

at::Tensor bias_of(const at::Tensor& visible) {
  constexpr double kHidden = -std::numeric_limits<double>::infinity();
  return at::zeros(visible.sizes(), visible.options().dtype(at::kFloat))
      .masked_fill_(visible.logical_not(), kHidden);
}

at::Tensor mask_in_four(const at::Tensor& mask, int64_t rank, int64_t batch, int64_t heads) {
  auto m = mask;
  while (m.dim() < rank) m = m.unsqueeze(0);
  if (rank == 2) return m.unsqueeze(0).unsqueeze(0);
  if (rank > 3) return m;
  return m.size(0) == 1 ? m.unsqueeze(0) : m.unflatten(0, {batch, heads});
}

at::Tensor run_sparse(const Attention& attention, const BlockLayout& layout, bool allow_dense) {
  SparseAttentionOptions options{.scale = attention.scale,
                                 .enable_gqa = attention.enable_gqa,
                                 .bias = attention.bias,
                                 .dropout = attention.dropout,
                                 .allow_dense = allow_dense};
  if (attention.dropout_seed) {
    options.generator = at::make_generator<at::CPUGeneratorImpl>(*attention.dropout_seed);
  }
  return sparse_attention(attention.query, attention.key, attention.value, layout, options);
}

ScopeHandler::ScopeHandler(MaskSpec spec, SparseAttentionScopeOptions options)
    : spec_(std::move(spec)),
      causal_spec_(spec_ & mask::causal(Align::top_left)),
      options_(std::move(options)) {}

at::Tensor ScopeHandler::scaled_dot_product_attention(const AttentionCall& call) {
  if (const auto reason = obstacle(call); !reason.empty()) {
    left_alone(kOneOp, {}, reason);
    return call.run();
  }
  const auto attention = attention_of(call, options_.heads);
  if (!meant(attention.shape())) {
    left_out(kOneOp, attention.shape());
    return call.run();
  }
  const auto out = run(attention, layout_of(attention), kOneOp);
  if (call.query.dim() == 4) return out;
  auto sizes = call.query.sizes().vec();
  if (call.query.dim() > 4) {
    sizes = at::infer_size(call.query.sizes().slice(0, call.query.dim() - 3),
                           call.key.sizes().slice(0, call.key.dim() - 3));
    sizes.insert(sizes.end(), {call.query.size(-3), call.query.size(-2), 0});
  }
  sizes.back() = call.value.size(-1);
  return out.reshape(sizes);
}

at::Tensor ScopeHandler::bmm(const at::Tensor& a, const at::Tensor& b) {
  auto* const weights = dynamic_cast<DeferredScores*>(intercept::as_deferred(a));
  if (weights != nullptr && weights->owner() == this) {
    if (auto out = weights->times(b)) return *std::move(out);
  } else if (are_weights(a)) {
    left_alone(kThreeOps, {a.size(0), 1, a.size(1), a.size(2)},
               "its scores were not computed by a bmm and masks alone");
  } else if (auto scores = DeferredScores::of(shared_from_this(), a, b)) {
    return *std::move(scores);
  }
  return OpHandler::bmm(a, b);
}

at::Tensor ScopeHandler::softmax(const at::Tensor& input, int64_t dim,
                                 std::optional<at::ScalarType> dtype) {
  if (auto* scores = dynamic_cast<DeferredScores*>(intercept::as_deferred(input))) {
    if (auto weights = scores->softmax(dim, dtype)) return *std::move(weights);
  }
  auto result = OpHandler::softmax(input, dim, dtype);
  remember_weights(result);
  return result;
}

at::Tensor ScopeHandler::dropout(const at::Tensor& input, double p, bool train) {
  if (auto* scores = dynamic_cast<DeferredScores*>(intercept::as_deferred(input))) {
    if (auto weights = scores->dropout(p, train)) return *std::move(weights);
  }
  auto result = OpHandler::dropout(input, p, train);
  if (are_weights(input)) remember_weights(result);
  return result;
}

bool ScopeHandler::meant(const AttentionShape& shape) const {
  return !options_.where || options_.where(shape);
}

BlockLayout ScopeHandler::layout_of(const Attention& attention) const {
  const auto shape = attention.shape();
  const bool narrows = shape.queries != shape.keys || !shows_no_future(spec_);
  const auto& spec = attention.is_causal && narrows ? causal_spec_ : spec_;
  const bool by_batch = detail::depends_on_batch(spec.node());
  const bool by_head = detail::depends_on_head(spec.node());
  TORCH_CHECK_VALUE(
      !attention.merged || !(by_batch || by_head),
      "the mask of a SparseAttentionScope differs between heads or batch entries, but "
      "the model's attention tells them as one number, ",
      shape.batch, "; set SparseAttentionScopeOptions::heads to the model's heads");
  return BlockLayout::build(spec, shape.queries, shape.keys,
                            {.block_size = options_.block_size,
                             .batch = by_batch ? shape.batch : 1,
                             .heads = by_head ? shape.heads : 1});
}

at::Tensor ScopeHandler::run(const Attention& attention, const BlockLayout& layout,
                             const std::string& ops) {
  auto out = run_sparse(attention, layout, options_.allow_dense);
  write_down({.ops = ops, .shape = attention.shape(), .density = layout.density()});
  return out;
}

void ScopeHandler::left_out(const std::string& ops, const AttentionShape& shape) {
  write_down({.path = AttentionPath::left_alone,
              .ops = ops,
              .shape = shape,
              .reason = "`where` leaves it out"});
}

void ScopeHandler::left_alone(const std::string& ops, const AttentionShape& shape,
                              const std::string& reason) {
  const auto text = "an attention (" + ops +
                    ") inside a SparseAttentionScope cannot run sparse: " + reason +
                    "; it would run as the model wrote it, without the scope's mask";
  if (options_.not_sparse == NotSparse::error) TORCH_CHECK_NOT_IMPLEMENTED(false, text);
  const bool first =
      write_down({.path = AttentionPath::left_alone, .ops = ops, .shape = shape, .reason = reason});
  if (first && options_.not_sparse == NotSparse::warn) TORCH_WARN(text);
}

bool ScopeHandler::write_down(SeenAttention one) {
  const std::lock_guard<std::mutex> lock(mutex_);
  bool new_reason = true;
  for (auto& other : seen_) {
    if (other.path != one.path || other.ops != one.ops || other.reason != one.reason) continue;
    new_reason = false;
    if (other.density != one.density || !(other.shape == one.shape)) continue;
    ++other.count;
    return false;
  }
  one.count = 1;
  if (seen_.size() < kSeenKinds) seen_.push_back(std::move(one));
  return new_reason;
}

std::vector<SeenAttention> ScopeHandler::seen() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return seen_;
}

void ScopeHandler::remember_weights(const at::Tensor& weights) {
  if (weights.dim() < 3 || !weights.has_storage()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (computed_weights_.size() == kRememberedWeights) {
    computed_weights_.erase(computed_weights_.begin());
  }
  computed_weights_.push_back(weights.storage().getWeakStorageImpl());
}

bool ScopeHandler::are_weights(const at::Tensor& tensor) {
  if (tensor.dim() != 3 || !tensor.has_storage()) return false;
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::any_of(computed_weights_.begin(), computed_weights_.end(), [&](const auto& weak) {
    const auto held = weak.lock();
    return held.get() == storage;
  });
}

}  // namespace torchlore::attention
