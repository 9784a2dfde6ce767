#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "torchlore/privacy/per_sample.hpp"

namespace torchlore {

/// Some parameters, clipped together.
struct ClipGroup {
  /// Names of parameters or of submodules, as `parameters_named` takes them.
  std::vector<std::string> names = {};
  /// The largest norm of an example's gradient over these parameters; finite and above 0.
  double max_norm = 1.0;
};

/// How the gradient of one example is limited before it is summed.
///
/// Each way gives a factor c for every example (and group) such that c·g is no longer than asked, up to
/// rounding: adding or removing one example moves the sum by no more than `sensitivity()` in the L2 norm.
/// ```cpp
/// const auto clipping = torchlore::ExampleClipping::flat(1.0);
/// ```
class ExampleClipping {
 public:
  /// Which way.
  enum class Kind : uint8_t {
    flat,       ///< one norm over all parameters
    per_layer,  ///< one for each module
    per_group,  ///< one for each group of parameters
    automatic   ///< normalised instead of clipped
  };

  /// c = min(1, max_norm/‖g‖), with the norm over all parameters.
  /// @throws c10::ValueError unless max_norm is finite and above 0.
  static ExampleClipping flat(double max_norm);

  /// Each module's own parameters are clipped alone, to max_norm/√L for L modules that have trainable
  /// ones, so that the sensitivity is max_norm all the same.
  /// @throws c10::ValueError unless max_norm is finite and above 0.
  static ExampleClipping per_layer(double max_norm);

  /// Each group is clipped alone. Together they must hold every trainable parameter once.
  /// @throws c10::ValueError for no group, or a max_norm that is not finite and above 0; names are
  ///         checked where the model is known.
  static ExampleClipping per_group(std::vector<ClipGroup> groups);

  /// c = max_norm/(‖g‖ + gamma): every gradient gets about the same length, and no threshold needs
  /// tuning.
  /// @param gamma keeps small gradients small; the paper's value is 0.01.
  /// @throws c10::ValueError unless both are finite and above 0.
  /// Source: Bu et al. (2022), arXiv:2206.07136.
  static ExampleClipping automatic(double max_norm, double gamma = 0.01);

  /// The largest L2 norm of what one example adds.
  double sensitivity() const;

  Kind kind() const { return kind_; }            ///< which way
  double max_norm() const { return max_norm_; }  ///< of flat, per_layer, automatic
  double gamma() const { return gamma_; }        ///< of automatic
  const std::vector<ClipGroup>& groups() const { return groups_; }  ///< of per_group

 private:
  ExampleClipping() = default;

  Kind kind_ = Kind::flat;
  double max_norm_ = 1.0;
  double gamma_ = 0.0;
  std::vector<ClipGroup> groups_;
};

/// What `add_clipped_sum` did.
struct ClippedSum {
  /// The norm of each example's gradient before clipping: [B, groups] float64, with one group for
  /// flat and automatic. Not finite for examples that were dropped. **Private**: shows single examples.
  at::Tensor norms = {};
  /// What each example was multiplied by: [B, groups] float64; 0 for those dropped. **Private**.
  at::Tensor factors = {};
  /// Examples: all of them.
  int64_t examples = 0;
  /// Examples left out whole, because their gradient is not finite. **Private**.
  int64_t dropped = 0;
  /// Examples that were made shorter, in any group; 0 for automatic. **Private**.
  int64_t clipped = 0;
  /// The largest L2 norm of what one example added.
  double sensitivity = 0.0;
};

/// Adds Σᵢ cᵢ·gᵢ to the parameters' `.grad`: the sum, not the mean, of each example's clipped gradient.
///
/// ```cpp
/// const auto losses = F::cross_entropy(model->forward(x), y,
///                                      F::CrossEntropyFuncOptions().reduction(torch::kNone));
/// torchlore::add_clipped_sum(losses, *model, torchlore::ExampleClipping::flat(1.0));
/// // add noise, divide by the expected batch, optimizer.step()
/// ```
/// One backward, no second forward (book-keeping): each layer's norms are taken while the gradient passes,
/// the weight gradients are made at the end from what was kept. Examples whose gradient is not finite
/// in any parameter are dropped whole. What the losses must be, and how examples are told apart:
/// `per_sample_norms`.
///
/// The graph is used up as by `backward`: a second use of the same losses is refused. Calls for several
/// batches add up.
/// @param losses   the loss of each example [B]; with B = 0 nothing is added.
/// @param model    whose trainable parameters are given gradients; those that the losses do not depend on
///                 keep their `.grad`, as in `backward`.
/// @param clipping see ExampleClipping.
/// @param options  see PerSampleOptions.
/// @return see ClippedSum.
/// @throws as `per_sample_norms`, and c10::ValueError for groups that do not fit the model. Nothing is
///         added after a throw.
/// @note Host syncs: 1, the norms; more in the first call for a graph.
/// Source: Bu et al. (2022), arXiv:2210.00038.
ClippedSum add_clipped_sum(const at::Tensor& losses, const torch::nn::Module& model,
                           const ExampleClipping& clipping, const PerSampleOptions& options = {});

/// "flat(1)" and so on, as it is written in code.
std::ostream& operator<<(std::ostream& out, const ExampleClipping& clipping);

}  // namespace torchlore
