#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "torchlore/core/batch.hpp"
#include "torchlore/core/loss.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/state_dict.hpp"
#include "torchlore/memory/error_kind.hpp"
#include "torchlore/memory/size_search.hpp"

namespace torch::nn {
class Module;
}

namespace torchlore {

/// What becomes of a batch that is to be split while batch norm is in training mode.
enum class BatchStatistics : uint8_t {
  refuse,   ///< it is not split: the out-of-memory error goes out and says so
  of_parts  ///< mean and deviation are those of each part, and running statistics move once a part
};

/// A change of size, as `SplitOptions::on_change` is told.
struct SplitEvent {
  int64_t from = 0;        ///< examples a part, before
  int64_t to = 0;          ///< examples a part, from now on
  std::string error = {};  ///< the text of the error that led to it; empty for a larger size
};

/// Options of `BatchSplitter` and `run_or_split`.
struct SplitOptions {
  /// How the size of parts is found.
  SizeSearchOptions sizes = {};
  /// Batch norm in training mode: `refuse` or `of_parts`.
  BatchStatistics batch_statistics = BatchStatistics::refuse;
  /// Its buffers are put back when a size did not fit. Costs a copy of the buffers per batch.
  const torch::nn::Module* model = nullptr;
  /// Sorts errors; only those that are `out_of_memory` split.
  std::function<ErrorKind(const std::exception&)> classify = classify_error;
  /// Told when the size changes.
  std::function<void(const SplitEvent&)> on_change = {};
  /// Ranks: memory that runs out on one splits on all. f must not talk to other ranks itself then.
  Reducer reducer = {};
};

/// What running a batch gave.
struct SplitResult {
  at::Tensor loss =
      {};             ///< 0-d, detached: the mean over the whole batch; undefined for an empty one
  int64_t parts = 0;  ///< forward and backward passes that went through
  int64_t part_size = 0;  ///< examples in each; the last may have fewer
};

/// Runs batches forward and backward, and in parts when memory runs out; remembers which size fits.
///
/// ```cpp
/// torchlore::BatchSplitter splitter;
/// for (auto& batch : *loader) {
///   optimizer.zero_grad();
///   splitter(batch, [&](const auto& part) {
///     return cross_entropy(model->forward(part.data), part.target);
///   });
///   optimizer.step();
/// }
/// ```
/// **The gradient is that of the whole batch**: a 0-d mean is weighed by its examples, a
/// `Loss{sum, count}` by its count, losses of examples [B] each alike. It is added to the gradients
/// that were there. A batch that fits is run as it is, and its gradients are those of
/// `loss.backward()`, bit for bit.
///
/// **When memory runs out** everything that the batch has done is undone: gradients, random
/// generators, and the model's buffers if it is named. Results and graph are dropped, caches are
/// emptied, and the whole batch runs again in parts of half the size.
///
/// **Sizes** are found and remembered as `SizeSearch` says. Batches run in as few parts as that
/// allows, of as equal size as possible.
///
/// **What depends on the batch** is not the same in parts. Batch norm in training mode is seen when
/// it is called, and refused unless the options accept it. Dropout draws other masks of the same
/// distribution. A loss that compares the examples of a batch cannot be split: this is not seen.
/// @note Costs, where a batch fits: a walk over its graph, a copy of the generators' states, of the
///       buffers, and nothing for gradients that were undefined. Gradients that were defined are
///       kept aside until the batch is through, which takes the memory of the gradients once more.
///       Host syncs: none; with a count on an accelerator, one per part.
class BatchSplitter {
 public:
  /// @throws c10::ValueError for an option out of range.
  explicit BatchSplitter(SplitOptions options = {});

  /// Runs a batch forward and backward.
  /// @param f called as `f(part)`, where `part` is the batch itself or a slice of it; returns the
  ///          loss. May be called several times for the same examples.
  /// @throws what f and backward throw, with everything as before the call. If memory runs out for
  ///         `min_size` examples, that error, with the sizes that were tried as its context.
  template <Batch B, LossFunction<const B&> F>
  SplitResult operator()(const B& batch, F&& f) {
    const int64_t size = batch_size(batch);
    return run(size, [&](int64_t from, int64_t to) -> AnyLoss {
      if (from == 0 && to == size) return f(batch);
      return f(static_cast<const B&>(slice(batch, from, to)));
    });
  }

  /// What is known of sizes.
  const SizeSearch& sizes() const { return sizes_; }

  /// The same, to be saved.
  StateDict state_dict() const { return sizes_.state_dict(); }
  /// Takes the saved state over. @throws as `SizeSearch::load_state_dict`.
  void load_state_dict(const StateDict& state) { sizes_.load_state_dict(state); }

  /// @name For loops that backpropagate in their own way
  /// @{

  /// One batch, as `run` needs it.
  struct Job {
    int64_t size = 0;                  ///< examples
    std::function<void()> begin = {};  ///< called before each attempt, to start from nothing
    /// The forward pass of examples [from, to): the tensor to call `backward()` on; undefined for
    /// none.
    std::function<at::Tensor(int64_t from, int64_t to)> forward = {};
    /// After the last part: what the batch's gradients are to be multiplied by.
    std::function<double()> end = {};
  };
  /// Runs it; as `operator()`, but for the loss.
  SplitResult run(const Job& job);
  /// @}

 private:
  using AnyLoss = std::variant<at::Tensor, Loss>;
  class Attempt;
  class Sum;

  SplitResult run(int64_t size, const std::function<AnyLoss(int64_t, int64_t)>& loss_of);
  int64_t shrink(int64_t batch, int64_t size, const Attempt& attempt);
  void announce(int64_t from, int64_t to, const std::string& error) const;
  [[noreturn]] void give_up(int64_t batch, const std::vector<Attempt>& failed);

  SplitOptions options_;
  SizeSearch sizes_;
  detail::LargestOverRanks largest_over_ranks_;
};

/// Runs one batch forward and backward, and in parts if memory runs out; the gradient is that of the
/// whole batch either way. `BatchSplitter` says how; it also remembers what fits.
///
/// ```cpp
/// torchlore::run_or_split(batch, [&](const auto& part) {
///   return torchlore::Loss{loss_sum(part), count(part)};
/// });
/// ```
/// @param f       called as `f(part)`; returns a 0-d mean, a `Loss{sum, count}` or one loss per
///                example [B].
/// @param options see SplitOptions.
/// @throws as `BatchSplitter`.
template <Batch B, LossFunction<const B&> F>
SplitResult run_or_split(const B& batch, F&& f, SplitOptions options = {}) {
  return BatchSplitter(std::move(options))(batch, std::forward<F>(f));
}

}  // namespace torchlore
