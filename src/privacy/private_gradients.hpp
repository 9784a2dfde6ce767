#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "batch_sizes.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/privacy/differentially_private.hpp"

namespace torch::optim {
class Optimizer;
}

namespace torchlore::privacy {

/// What `DifferentiallyPrivate` is a handle of: the clipped sum of a window (a logical batch), and what was
/// spent.
class PrivateGradients {
 public:
  PrivateGradients(torch::nn::Module& model, DifferentiallyPrivateOptions options);

  /// Belongs to one step at a time. @throws c10::ValueError if it has one, or if the optimizers' parameters
  ///         are not those of the model.
  void attach(const std::vector<torch::optim::Optimizer*>& optimizers);
  void detach() { optimizers_.clear(); }

  /// @name A window: start, add, add, …, release
  /// @{
  /// @throws c10::Error if the budget is spent; c10::ValueError if parameters have changed hands.
  void start_window();
  /// Adds the clipped gradients of some examples to `.grad`. @param losses [b].
  void add(const at::Tensor& losses);
  /// Adds noise, divides, and notes it in the ledger. Collective over ranks.
  void release(const Reducer& ranks);
  /// Forgets what was added; the gradients themselves are cleared by who owns them.
  void drop_window();
  /// @}

  /// What an attempt that fails has to put back: copies of the gradients so far.
  struct Snapshot {
    std::vector<at::Tensor> gradients = {};
    double examples = 0;
    double unclipped = 0;
  };
  Snapshot snapshot() const;
  void restore(const Snapshot& snapshot);

  /// Whether examples are still to be checked for mixing.
  bool checks_mixing() const { return options_.check_mixing && !checked_mixing_; }
  void found_unmixed() { checked_mixing_ = true; }

  torch::nn::Module& model() const { return model_; }
  const DifferentiallyPrivateOptions& options() const { return options_; }
  const PrivacyLedger& spent() const { return spent_; }
  int64_t steps() const { return steps_; }
  double max_grad_norm() const { return max_norm_; }
  double epsilon(double delta);
  int64_t steps_left();
  StateDict state_dict() const;
  void load_state_dict(const StateDict& state);

 private:
  struct Trained {
    std::string name;
    at::Tensor parameter;
    // The gradient as this class left it.
    const void* gradient = nullptr;
    int64_t version = 0;
  };

  void check_options() const;
  void warn_of(double delta);
  PrivacyEvent event() const;
  Accounting accounting() const;
  ExampleClipping clipping() const;
  double gradient_noise() const;  // over the sensitivity
  void list_trained();
  void check_untouched() const;
  void note_gradients();
  void add_noise(at::TensorList tensors, double stddev, const Reducer& ranks);
  void sum_over_ranks(const Reducer& ranks);
  void adapt(double unclipped, const Reducer& ranks);

  torch::nn::Module& model_;
  DifferentiallyPrivateOptions options_;
  std::vector<torch::optim::Optimizer*> optimizers_;
  std::vector<const void*> known_;  // the model's parameters at the start, sorted
  std::vector<Trained> trained_;    // of this window
  double max_norm_;
  double examples_ = 0;   // of this window
  double unclipped_ = 0;  // of these, those that are no longer than max_norm
  PrivacyLedger spent_;
  int64_t steps_ = 0;
  bool noiseless_ = false;            // something was released without noise
  std::optional<int64_t> last_step_;  // that the budget allows, once known
  BatchSizes sizes_;
  bool checked_mixing_ = false;
  bool warned_ = false;
};

}  // namespace torchlore::privacy
