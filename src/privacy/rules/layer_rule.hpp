#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string_view>
#include <vector>

#include "../example_layout.hpp"
#include "torchlore/intercept/tape_node.hpp"

/// How each op's parameters get their gradients, example by example.
///
/// A rule is made for one op of a tape and the parameters that it uses (its slots: a weight, a bias). It
/// says how the gradient by the op's output becomes the gradients of single examples by these, as the op
/// sees them: behind views and casts, whose adjoint the caller applies. The caller also sums over
/// several uses of a parameter, keeps what is kept, and chooses the mode by `cost`.
///
/// The order of calls, all on one thread at a time, with grad mode off: the constructor (which may take
/// what the op saved), `take` with the gradient, then per slot `instantiate` or `ghost_norms`, and if the
/// gradients were not kept later `weighted_sum`, perhaps after `drop`.
///
/// Everything here must be exact for any strides, dtype and device; a faster kernel for some of them is
/// chosen inside a rule's functions, and falls back to the plain way.
namespace torchlore::detail {

/// One parameter of an op.
struct RuleSlot {
  std::string_view input = {};      ///< the op's name for it: "mat2", "weight", "bias", …
  std::vector<int64_t> sizes = {};  ///< its shape as the op sees it
};

/// What a rule is made of. The node is alive as long as the rule.
struct RuleSite {
  const TapeNode* node = nullptr;
  ExampleLayout layout = {};  ///< of the op's first output that has a gradient
  std::vector<RuleSlot> slots = {};
};

/// Gradients of single examples by one slot.
struct InstantiatedGradients {
  /// [B, *sizes of the slot], any strides; may share memory with the gradient that was taken.
  at::Tensor gradients = {};
  at::Tensor squares = {};  ///< their squared norms [B] float64; undefined if not at hand
};

/// What a slot costs, in multiply-adds; infinite for what it cannot do.
struct RuleCost {
  double instantiate = 0;
  double ghost = std::numeric_limits<double>::infinity();
  /// Too small for a choice: it is instantiated and kept.
  bool is_small = true;
};

class LayerRule {
 public:
  explicit LayerRule(RuleSite site) : site_(std::move(site)) {}
  virtual ~LayerRule() = default;
  LayerRule(const LayerRule&) = delete;
  LayerRule& operator=(const LayerRule&) = delete;
  LayerRule(LayerRule&&) = delete;
  LayerRule& operator=(LayerRule&&) = delete;

  const RuleSite& site() const { return site_; }

  /// The gradient by the op's output arrives. It must not be written: backward goes on with it.
  virtual void take(const at::Tensor& gradient) { gradient_ = gradient; }

  /// How many of the op's first outputs the rule wants gradients of. With more than one,
  /// `take_outputs` is called instead of `take`, when the whole backward is over.
  virtual int64_t output_count() const { return 1; }

  /// The gradients by these outputs, undefined where none arrives.
  virtual void take_outputs(const std::vector<at::Tensor>& gradients) { take(gradients[0]); }

  /// What the slot's ways cost; known when the gradient is.
  virtual RuleCost cost(size_t slot) const = 0;

  /// Forms the gradients. May be called again.
  virtual InstantiatedGradients instantiate(size_t slot) = 0;

  /// Squared norms [B] float64, without forming the gradients; only where `cost` says so.
  virtual at::Tensor ghost_norms(size_t slot);

  /// Squared norms [B] float64, forming the gradients of a few examples at a time.
  virtual at::Tensor norms(size_t slot);

  /// Σᵢ factorsᵢ·gᵢ [*sizes of the slot], from the inputs and the gradient that `take` kept.
  /// @param factors [B] float64.
  virtual at::Tensor weighted_sum(size_t slot, const at::Tensor& factors);

  /// Makes all that is kept of some examples zero (a factor 0 is not enough: 0 · NaN is NaN).
  /// @param dropped [B] bool.
  virtual void drop(const at::Tensor& dropped);

 protected:
  RuleSite site_;
  at::Tensor gradient_;
};

/// `value` with all elements of the dropped examples zero; a new tensor.
at::Tensor zeroed(const at::Tensor& value, const ExampleLayout& layout, const at::Tensor& dropped);

/// The rule for an op with these slots; null if there is none, or if the example lies where the op has
/// no gradients of single examples.
std::unique_ptr<LayerRule> make_rule(const RuleSite& site);

/// The op mixes examples whatever they are: says so, with the remedy.
/// @throws c10::NotImplementedError
void refuse_mixing_op(const TapeNode& node);

/// One family of rules; null for what is not theirs.
std::unique_ptr<LayerRule> make_linear_rule(const RuleSite& site);
std::unique_ptr<LayerRule> make_convolution_rule(const RuleSite& site);
std::unique_ptr<LayerRule> make_embedding_rule(const RuleSite& site);
std::unique_ptr<LayerRule> make_recurrent_rule(const RuleSite& site);
std::unique_ptr<LayerRule> make_bilinear_rule(const RuleSite& site);
/// Norms, and parameters that are added to or multiplied with their like by broadcasting.
std::unique_ptr<LayerRule> make_broadcast_rule(const RuleSite& site);

}  // namespace torchlore::detail
