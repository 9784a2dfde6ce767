#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "torchlore/core/state_dict.hpp"
#include "torchlore/privacy/calibrate_noise.hpp"
#include "torchlore/privacy/clipped_sum.hpp"
#include "torchlore/privacy/noise_source.hpp"
#include "torchlore/privacy/per_sample.hpp"
#include "torchlore/privacy/privacy_budget.hpp"
#include "torchlore/privacy/privacy_ledger.hpp"
#include "torchlore/privacy/quantile_clipping.hpp"

namespace torch::nn {
class Module;
}

namespace torchlore {

namespace privacy {
class PrivateGradients;
}

/// Options of `differentially_private`.
struct DifferentiallyPrivateOptions {
  /// Standard deviation of the noise on the sum of gradients, over the norm they are clipped to. To be
  /// set; `calibrate_noise` finds it (twice its result for batches of a fixed size). 0 clips only, and
  /// ε is infinite.
  double noise_multiplier = -1;
  /// The norm that each example's gradient is clipped to; finite, above 0.
  double max_grad_norm = 1;
  /// Examples of the data set. To be set.
  int64_t dataset_size = 0;
  /// Examples of a logical batch, on average; what the sum is divided by. To be set.
  double expected_batch = 0;
  /// How the logical batches are drawn: by `PoissonSampler` or `FixedSizeSampler`.
  Sampling sampling = Sampling::poisson;
  /// Another way to clip; its sensitivity takes the place of max_grad_norm.
  std::optional<ExampleClipping> clipping = std::nullopt;
  /// Lets max_grad_norm follow a quantile.
  std::optional<QuantileClipping> adaptive = std::nullopt;
  /// Ends training before more is spent.
  std::optional<PrivacyBudget> budget = std::nullopt;
  /// How ε is computed; for batches of a fixed size PRV stands for PLD.
  Accounting accounting = Accounting::prv;
  /// Where the noise comes from.
  NoiseSource noise = {};
  /// Examples that go through the model at once, at most; 0: all of a call.
  int64_t physical_batch = 0;
  /// At the first step, runs the batch of `step(batch, f)` twice more with other examples changed, and
  /// refuses if an example's loss changes.
  bool check_mixing = true;
  /// How the gradients of single examples come about.
  PerSampleOptions per_sample = {};
};

/// The gradient stage of a `TrainingStep` that makes it differentially private: each example's gradient is
/// clipped, noise is added to their sum once for each logical batch, and the ledger notes it.
///
/// Made by `differentially_private`. A handle: copies are the same stage, with the same ledger.
class DifferentiallyPrivate {
 public:
  /// What `options` asked for.
  const DifferentiallyPrivateOptions& options() const;
  /// All that was released so far.
  const PrivacyLedger& spent() const;
  /// ε of what was released, for a δ in (0, 1): an upper bound. Infinity with a noise multiplier of 0.
  /// @throws c10::ValueError for a delta out of range.
  double epsilon(double delta) const;
  /// Logical batches released.
  int64_t steps() const;
  /// How many more the budget allows; the largest int64_t without a budget. The first call takes some
  /// milliseconds to seconds.
  int64_t steps_left() const;
  /// Whether the budget allows no further step: leave the loop.
  bool exhausted() const { return steps_left() == 0; }
  /// The norm that gradients are clipped to now.
  double max_grad_norm() const;

  /// What was spent, and the clipping norm. Of a secure noise source nothing is saved.
  StateDict state_dict() const;
  /// Takes over what was spent. @throws c10::ValueError if it was saved with another data set or
  ///         sampling, if something was spent already (it would be forgotten), or if the state is damaged.
  void load_state_dict(const StateDict& state);

 private:
  friend class TrainingStep;
  friend DifferentiallyPrivate differentially_private(torch::nn::Module& model,
                                                      const DifferentiallyPrivateOptions& options);
  explicit DifferentiallyPrivate(std::shared_ptr<privacy::PrivateGradients> gradients)
      : gradients_(std::move(gradients)) {}

  std::shared_ptr<privacy::PrivateGradients> gradients_;
};

/// Makes the gradient stage for a model.
///
/// ```cpp
/// auto dp = torchlore::differentially_private(*model, {
///     .noise_multiplier = 1.1, .max_grad_norm = 1.0, .dataset_size = 60'000, .expected_batch = 256});
/// torchlore::TrainingStep step(optimizer, {.gradient = dp});
/// torchlore::PoissonSampler sampler(60'000, {.expected_batch = 256});
/// for (auto& batch : sampler.batches(train)) {
///   step(batch, [&](const auto& b) { return losses_of_examples(model->forward(b.data), b.target); });
/// }
/// std::cout << "spent ε = " << dp.epsilon(1e-5) << " at δ = 1e-5\n";
/// ```
/// The function returns one loss per example [B]; the model's source is not touched. What is private are the
/// weights and what is computed from them. **Losses, and so `StepResult::loss()`, are not.**
/// @param model   must outlive the stage. All its trainable parameters, and no others, must be those of the
///                step's optimizers; float32 or float64.
/// @throws c10::ValueError for an option that is not set or out of range, or a model without trainable
///         parameters.
DifferentiallyPrivate differentially_private(torch::nn::Module& model,
                                             const DifferentiallyPrivateOptions& options);

}  // namespace torchlore
