#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "torchlore/core/bytes.hpp"

namespace torchlore {

/// What an `ActivationBudget` does when the budget is below its floor; see
/// `ActivationBudgetStats::floor_bytes`.
enum class BelowFloor : uint8_t {
  warn,   ///< keeps as little as it can, and warns once when the scope ends
  error,  ///< throws from the op that shows it, in the forward
};

/// Options of `ActivationBudget`.
struct ActivationBudgetOptions {
  /// What to do below the floor. A budget of 0 asks for as little as possible: it is never too low.
  BelowFloor below_floor = BelowFloor::warn;
  /// Computes everything that backward asks for again, also what is still there, and compares the
  /// bytes; `ActivationBudgetStats::mismatched` counts. Backward then takes several times as long.
  bool verify = false;
  /// Namespaces of custom ops ("torchvision") that depend on nothing but their arguments and the
  /// default generators, and say in their schema what they write. The results of others are pinned.
  std::vector<std::string> pure_namespaces = {};
};

/// What an `ActivationBudget` did. It goes on counting after the scope, until the graph is gone.
struct ActivationBudgetStats {
  int64_t ops = 0;              ///< leaf ops seen
  int64_t records = 0;          ///< of these, recorded: they made or changed bytes
  int64_t saved_tensors = 0;    ///< that autograd saved
  int64_t saved_bytes = 0;      ///< of their storages, each counted once: what a plain run keeps
  int64_t packed = 0;           ///< times that one of two bit patterns was kept as bits
  int64_t evictions = 0;        ///< times that a saved activation was dropped
  int64_t replays = 0;          ///< times that backward asked for something dropped
  int64_t replayed_ops = 0;     ///< ops that ran again for it
  int64_t peak_pool_bytes = 0;  ///< the most that was kept, pinned included, after any op
  int64_t pinned_bytes = 0;     ///< the most that was kept because it cannot be computed again
  /// The least that this graph can be held in: what is pinned, and the largest set of tensors that
  /// one node of backward needs together.
  int64_t floor_bytes = 0;
  int64_t touched = 0;     ///< tensors that were found written by hand, and pinned
  int64_t verified = 0;    ///< tensors compared by `verify`
  int64_t mismatched = 0;  ///< of these, the ones that came out with other bytes
  std::vector<std::string> mismatched_ops = {};  ///< the ops they came from
};

/// A limit for the activations that a forward pass keeps for backward, for a model as it is.
///
/// ```cpp
/// {
///   torchlore::ActivationBudget budget(torchlore::GiB(2));
///   loss = model->forward(x).mean();
/// }
/// loss.backward();
/// ```
/// Ops inside the scope are recorded. Beyond the budget the activations that are cheapest to compute
/// again for their size are dropped, and computed again, by running the recorded ops, when backward
/// needs them. Loss, gradients, buffers and random numbers are bit for bit those of a plain run.
/// docs/memory.md says how it works, what it costs and what it cannot drop.
///
/// The budget is for what autograd saves. Parameters, inputs, gradients and the tensors that an op
/// works with come on top.
/// @note Parameters and inputs must not change in place between forward and backward: an error.
/// @note A scope belongs to the thread that made it; backward may run on any. Of nested scopes the
///       innermost records. Backward inside the scope works and is not recorded. A mode that changes
///       results goes inside the scope. Scopes end innermost first; a violation is a warning.
/// @note Recording costs about a microsecond for an op. Host syncs: 0.
/// Source: Kirisame et al. (2021), Dynamic Tensor Rematerialization, arXiv:2006.09616.
class [[nodiscard]] ActivationBudget {
 public:
  /// Enters the scope.
  /// @throws c10::ValueError for a negative budget; c10::Error inside an `OpMode` whose handler
  ///         changes results, and as `OpMode` and `SavedTensorScope`.
  explicit ActivationBudget(Bytes budget, ActivationBudgetOptions options = {});
  ~ActivationBudget();

  ActivationBudget(const ActivationBudget&) = delete;
  ActivationBudget(ActivationBudget&&) = delete;
  ActivationBudget& operator=(const ActivationBudget&) = delete;
  ActivationBudget& operator=(ActivationBudget&&) = delete;

  /// What it did so far. Keep it to read it after backward; not while another thread runs backward.
  std::shared_ptr<const ActivationBudgetStats> stats() const;

 private:
  struct Scope;
  std::unique_ptr<Scope> scope_;
};

}  // namespace torchlore
