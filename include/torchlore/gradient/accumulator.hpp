#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "torchlore/core/loss.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/state_dict.hpp"

namespace torchlore {

/// How much makes a window of gradient accumulation.
class Accumulate {
 public:
  /// `n` micro-batches. @throws c10::ValueError unless n >= 1.
  static Accumulate batches(int64_t n);
  /// As many micro-batches as it takes to reach `n` counts (tokens, samples): every loss must be a
  /// `Loss`. @throws c10::ValueError unless n >= 1.
  static Accumulate counts(int64_t n);

  /// Whether the window is measured in counts, not in micro-batches.
  bool by_counts() const { return by_counts_; }
  /// Micro-batches, or counts.
  int64_t size() const { return size_; }

 private:
  Accumulate(int64_t size, bool by_counts) : size_(size), by_counts_(by_counts) {}
  int64_t size_;
  bool by_counts_;
};

/// How an accumulator agrees with other ranks.
struct GradientAccumulatorOptions {
  /// Ranks of data-parallel training: counts are summed over them, so that the gradient is the mean
  /// over all tokens of all ranks.
  Reducer reducer = {};
  /// Whether the gradients are averaged over ranks (as data parallel does), not summed.
  bool averaged_over_ranks = true;
};

/// Makes a large batch of several micro-batches, with the mean taken over the whole window.
///
/// Gradients add up in the parameters' own `.grad`; nothing is copied. The division by what the
/// window held is left to its end, where it costs nothing beside clipping or inside a fused
/// optimizer:
/// ```cpp
/// torchlore::GradientAccumulator window(torchlore::Accumulate::batches(4));
/// for (auto& batch : *loader) {
///   if (window.empty()) optimizer.zero_grad();
///   window.add({token_loss_sum(batch), token_count(batch)}).backward();  // or a 0-d mean
///   if (!window.full()) continue;
///   torchlore::clip_grad_norm_(*model, 1.0, {.divisor = window.divisor()});
///   optimizer.step();
///   window.reset();
/// }
/// ```
/// The result equals one big batch: a `Loss{sum, count}` is weighed by its count, a 0-d mean counts
/// as one. The last window may be partial: `divisor()` is by what was added.
///
/// A loss is divided by a fixed power of two (exact in floating point) before it goes to backward,
/// so that sums over many tokens stay within float16's range; `divisor()` takes it back. Host
/// syncs: none for counts on the host; a count on an accelerator costs one per micro-batch with
/// `Accumulate::counts`, else one in the accumulator's life.
class GradientAccumulator {
 public:
  /// @param window  what ends a window: `Accumulate::batches` or `Accumulate::counts`.
  /// @param options see GradientAccumulatorOptions.
  explicit GradientAccumulator(Accumulate window = Accumulate::batches(1),
                               GradientAccumulatorOptions options = {});

  /// Counts a micro-batch in and gives the tensor to call `backward()` on.
  /// @param mean 0-d mean loss of the micro-batch.
  /// @throws c10::ValueError if it is not 0-d or the window is by counts; c10::Error if the window
  ///         holds `Loss`es or is full.
  at::Tensor add(const at::Tensor& mean);
  /// The same for a sum with its count; a count of 0 adds nothing to the mean.
  /// @throws c10::ValueError for a sum that is not 0-d or a negative count (where known on the
  ///         host); c10::Error if the window holds means or is full.
  at::Tensor add(const Loss& loss);
  /// Counts in a micro-batch without examples: it fills the window and weighs nothing.
  void add_empty();
  /// More of the micro-batch that was added last, which was split: its next part. Gives the tensor
  /// to call `backward()` on.
  /// @param share the part's mean times its share of the micro-batch; `add` had that of the first.
  /// @throws c10::ValueError as `add`; c10::Error if no mean was added last.
  at::Tensor add_to_last(const at::Tensor& share);
  /// The same for a sum with its count. @throws as above, for sums.
  at::Tensor add_to_last(const Loss& loss);

  /// Nothing was added since the last reset.
  bool empty() const { return batches_ == 0; }
  /// The window holds what it should: time to divide, step and reset.
  bool full() const;
  /// Micro-batches in the window so far.
  int64_t batches() const { return batches_; }

  /// Whether all counts of the window are 0, on all ranks: there is nothing to step on. Counts that
  /// stay on an accelerator are not looked at, and taken for something. Collective over ranks.
  bool weighs_nothing() const;
  /// What the accumulated gradients must be divided by: 0-d float64, > 0. Where all counts of the
  /// window are 0, so are the gradients, and the divisor is 1. Collective over ranks.
  at::Tensor divisor() const;

  /// Starts the next window.
  void reset();

  /// Changes the window's size. @throws c10::Error inside a window.
  void set_window(Accumulate window);
  /// The window's size.
  Accumulate window() const { return window_; }

  /// @throws c10::Error inside a window: its gradients are not part of the state.
  StateDict state_dict() const;
  /// Takes the saved state over. @throws c10::ValueError if something is missing.
  void load_state_dict(const StateDict& state);

 private:
  enum class Kind { none, means, sums };

  at::Tensor add_to_window(Kind kind, const at::Tensor& loss, const Count& count);
  void check_room(Kind kind) const;
  void check_last(Kind kind) const;
  void count_in(const Count& count);
  at::Tensor normalized(const at::Tensor& loss) const;
  void choose_normalizer(const Count& first);
  double sum_over_ranks(double value) const;
  const at::Tensor& total_over_ranks() const;

  Accumulate window_;
  GradientAccumulatorOptions options_;
  Kind kind_ = Kind::none;
  int64_t batches_ = 0;
  double host_total_ = 0;            // of this rank's counts, as far as the host knows them
  at::Tensor device_total_;          // of the others: 0-d float64, left on their device
  mutable at::Tensor agreed_total_;  // of all ranks, once asked for in this window
  double global_total_ = 0;          // over all ranks; kept for windows by counts only
  double normalizer_ = 0;            // the power of two; 0 until the first micro-batch
};

}  // namespace torchlore
