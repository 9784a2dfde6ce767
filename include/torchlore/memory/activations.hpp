#pragma once

#include <functional>
#include <memory>

#include "torchlore/core/bytes.hpp"
#include "torchlore/memory/activation_budget.hpp"
#include "torchlore/memory/compress_activations.hpp"
#include "torchlore/memory/offload_activations.hpp"

namespace torchlore {

/// What becomes of the activations that a forward pass saves for backward, as a value: the stage of
/// `TrainingStep`.
///
/// ```cpp
/// torchlore::TrainingStep step(optimizer,
///                              {.activations = torchlore::Activations::compress(at::kBFloat16)});
/// ```
class Activations {
 public:
  /// They stay as they are.
  static Activations keep();
  /// Dropped beyond a number of bytes and computed again; see ActivationBudget. @throws as its
  /// constructor.
  static Activations budget(Bytes bytes, ActivationBudgetOptions options = {});
  /// In fewer bits; see CompressActivations. @throws as its constructor.
  static Activations compress(c10::ScalarType dtype = c10::ScalarType::BFloat16,
                              CompressOptions options = {});
  /// On the host or in a file; see OffloadActivations. @throws as its constructor.
  static Activations offload(OffloadOptions options = {});

  /// Enters the scope that does it; it ends with what is returned. Null for `keep`.
  std::shared_ptr<void> enter() const;

 private:
  explicit Activations(std::function<std::shared_ptr<void>()> make_scope);

  std::function<std::shared_ptr<void>()> make_scope_;
};

}  // namespace torchlore
