#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "torchlore/attention/mask.hpp"

/// Attention as its definition says it, with every score in memory: what sparse attention must equal.
namespace torchlore::testing {

/// Which pairs a mask shows, [batch, heads, queries, keys], one question per pair.
inline at::Tensor brute_force(const MaskSpec& spec, int64_t batch, int64_t heads, int64_t queries,
                              int64_t keys) {
  auto visible = at::zeros({batch, heads, queries, keys}, at::kBool);
  auto* out = visible.mutable_data_ptr<bool>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const Where where{.queries = queries, .keys = keys, .batch = b, .head = h};
      for (int64_t q = 0; q < queries; ++q) {
        for (int64_t k = 0; k < keys; ++k) *out++ = spec.visible(q, k, where);
      }
    }
  }
  return visible;
}

/// One problem. Tensors are of any dtype; `visible` broadcasts to [B, H, T, S].
struct AttentionCase {
  at::Tensor query, key, value, visible;
  std::optional<double> scale = std::nullopt;
  std::optional<at::Tensor> added = std::nullopt;    ///< to the scaled scores
  std::optional<at::Tensor> weights = std::nullopt;  ///< factors of the weights after the softmax

  /// The same numbers in another dtype.
  AttentionCase to(at::ScalarType dtype) const {
    const auto convert = [&](const std::optional<at::Tensor>& x) {
      return x ? std::optional(x->to(dtype)) : std::nullopt;
    };
    return {query.to(dtype), key.to(dtype),  value.to(dtype), visible,
            scale,           convert(added), convert(weights)};
  }
};

struct AttentionAnswer {
  at::Tensor output, log_sum_exp;
  at::Tensor query, key, value;  ///< gradients
};

/// Output and log-sum-exp by LibTorch's plain ops, in the case's dtype.
inline std::pair<at::Tensor, at::Tensor> eager_forward(const AttentionCase& c) {
  const int64_t group = c.query.size(1) / c.key.size(1);
  const auto key = c.key.repeat_interleave(group, 1), value = c.value.repeat_interleave(group, 1);
  const double scale = c.scale.value_or(1 / std::sqrt(static_cast<double>(c.query.size(3))));
  auto scores = at::matmul(c.query * scale, key.transpose(-2, -1));
  if (c.added) scores = scores + *c.added;
  const auto shown = c.visible.expand_as(scores);
  const auto some = shown.any(-1, /*keepdim=*/true);
  // A finite number, so that rows without keys have gradients of zero and not of NaN.
  scores = scores.masked_fill(shown.logical_not(), -30000.0);
  auto weights = at::softmax(scores, -1).masked_fill(shown.logical_not(), 0);
  if (c.weights) weights = weights * *c.weights;
  const auto sums =
      at::logsumexp(scores, -1)
          .masked_fill(some.squeeze(-1).logical_not(), -std::numeric_limits<double>::infinity());
  return {at::matmul(weights, value), sums};
}

/// The same with the gradients of (output · grad_output).
inline AttentionAnswer eager(const AttentionCase& c, const at::Tensor& grad_output) {
  auto leaf = c;
  for (auto* x : {&leaf.query, &leaf.key, &leaf.value}) *x = x->detach().requires_grad_();
  const auto [output, sums] = eager_forward(leaf);
  const auto grads = torch::autograd::grad({output}, {leaf.query, leaf.key, leaf.value},
                                           {grad_output.to(output.scalar_type())});
  return {output.detach(), sums.detach(), grads[0], grads[1], grads[2]};
}

/// The same in float64.
inline AttentionAnswer golden(const AttentionCase& c, const at::Tensor& grad_output) {
  return eager(c.to(at::kDouble), grad_output);
}

/// Masks at random: trees of `&`, `|` and `!` over the makers, for any pair of lengths.
class RandomMasks {
 public:
  explicit RandomMasks(uint64_t seed) : random_(seed) {}

  /// A mask of some parts, with its alignment set.
  MaskSpec next(int64_t queries, int64_t keys) {
    queries_ = queries;
    keys_ = keys;
    const auto align = pick(2) == 0 ? Align::top_left : Align::bottom_right;
    return tree(2).aligned(align);
  }
  /// A whole number in [0, bound).
  int64_t pick(int64_t bound) {
    return std::uniform_int_distribution<int64_t>(0, bound - 1)(random_);
  }

 private:
  MaskSpec tree(int depth) {
    if (depth == 0 || pick(4) == 0) return leaf();
    switch (pick(5)) {
      case 0:
        return !tree(depth - 1);
      case 1:
      case 2:
        return tree(depth - 1) & tree(depth - 1);
      default:
        return tree(depth - 1) | tree(depth - 1);
    }
  }

  MaskSpec leaf() {
    const auto seed = static_cast<uint64_t>(pick(1000));
    switch (pick(13)) {
      case 0:
        return mask::causal();
      case 1:
        return mask::window(1 + pick(keys_));
      case 2:
        return mask::sinks(pick(8));
      case 3:
        return mask::global_tokens({pick(queries_), pick(queries_)});
      case 4:
        return mask::dilated(1 + pick(6), 1 + pick(5));
      case 5:
        return mask::strided(1 + pick(9));
      case 6:
        return mask::log_sparse();
      case 7:
        return mask::documents(std::vector<int64_t>{1 + pick(keys_), 1 + pick(keys_)});
      case 8:
        return mask::prefix_lm(pick(keys_));
      case 9:  // seldom: each question about a random part costs the definition a whole row
        return pick(3) > 0 ? mask::causal() : mask::random_top_k(1 + pick(5), seed);
      case 10:
        return pick(3) > 0 ? mask::all() : mask::random_blocks(1 + pick(2), seed, {.block = 32});
      case 11:
        return mask::predicate(
            [seed](int64_t q, int64_t k, const Where& where) {
              const auto x = static_cast<uint64_t>(q * 5000 + k) * 0x9e3779b97f4a7c15U + seed;
              return (x >> 40) % 7 == static_cast<uint64_t>(where.head) % 7;
            },
            {.per_head = true});
      default:
        return mask::causal() & mask::window(1 + pick(40));
    }
  }

  std::mt19937_64 random_;
  int64_t queries_ = 1, keys_ = 1;
};

}  // namespace torchlore::testing
