#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "torchlore/core/bytes.hpp"
#include "torchlore/core/loss.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/state_dict.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace torchlore {

/// What is done about a step.
enum class SpikeAction {
  none,      ///< it is made as it is
  clip,      ///< it is made with gradients limited to `SpikeVerdict::max_norm`
  skip,      ///< it is not made
  roll_back  ///< it is not made, and everything is back at the last good snapshot
};

/// The action's name, as written in code.
const char* to_string(SpikeAction action);

/// Why a loss is a spike.
enum class SpikeReason {
  none,        ///< it is none
  non_finite,  ///< the loss, or the norm of the gradients, is inf or NaN
  jump,        ///< the loss is `jump` times its running level
  z_score      ///< the loss stands out from the last good ones
};

/// The reason's name, as written in code.
const char* to_string(SpikeReason reason);

/// What a `SpikeGuard` saw and decided.
struct SpikeVerdict {
  SpikeAction action = SpikeAction::none;  ///< what is done
  SpikeReason reason = SpikeReason::none;  ///< why
  int64_t step = 0;                        ///< how many windows were observed before
  double loss = 0;                         ///< mean over the window, and over all ranks
  double norm = 0;                         ///< of the gradients; NaN if it was not given
  double level = 0;    ///< the median of the last good losses; NaN before the first
  double z_score = 0;  ///< robust standard deviations above the level; NaN before the first
  /// For `clip`: the largest norm the gradients may have; else infinity.
  double max_norm = std::numeric_limits<double>::infinity();

  /// Whether the step is made.
  bool steps() const { return action == SpikeAction::none || action == SpikeAction::clip; }
};

/// Options of `SpikeGuard`.
struct SpikeGuardOptions {
  /// The model, for its buffers: a skip and a roll-back put them back too, since a bad batch has
  /// gone through batch norm's statistics before its loss is known. nullptr leaves them.
  const torch::nn::Module* model = nullptr;

  /// A loss above this many times its level, and of all remembered losses or z_threshold too, is a
  /// spike at once; > 1, infinity for never.
  double jump = 1000;
  /// A loss this many robust standard deviations above its level is one; > 0, infinity for never.
  double z_threshold = 6;
  /// How many of the last good losses (and norms) are remembered; warmup at least.
  int64_t window = 256;
  /// Good losses before the z-score is trusted; 2 or more.
  int64_t warmup = 32;
  /// The smallest standard deviation, relative to the level; > 0.
  double min_spread = 0.1;
  /// Judge log(loss). false for losses that are 0 or below by nature: those are judged as they are.
  bool log_scale = true;

  /// Steps in a row that are only clipped, before the next are skipped; 0 or more. Losses that are
  /// not finite, and jumps, are never clipped but skipped at once.
  int64_t clips = 1;
  /// After those, steps in a row that are skipped, before a roll-back; 0 or more.
  int64_t skips = 1;
  /// A clipped step has this share of the median norm; > 0.
  double clip_factor = 0.5;
  /// So many spikes in a row are taken for the new level, and the statistics start anew; where the
  /// losses are not finite, c10::Error is thrown instead. 1 or more.
  int64_t patience = 50;

  /// Good steps between snapshots; 0 for none, and no roll-back.
  int64_t snapshot_every = 50;
  /// Keep the snapshot in the host's memory, not on each tensor's own device.
  bool snapshot_on_host = false;
  /// What all learning rates are multiplied by after a roll-back; in (0, 1].
  double rate_factor = 0.5;
  /// Good steps until the rates are what they were; 0 for never.
  int64_t cooldown = 200;
  /// Multiplies the rates, where something else writes them in every step:
  /// `[&](double factor) { learning_rate.scale(factor); }`. Nothing: the groups' `lr` is
  /// multiplied. `TrainingStep` sets it for its own schedule.
  std::function<void(double factor)> scale_rates = {};

  /// In `TrainingStep`: leave a micro-batch out before its backward pass, if its loss is not finite
  /// or a jump. Costs a host sync per micro-batch.
  bool drop_bad_batches = false;
  /// Told of every spike, after it was acted on.
  std::function<void(const SpikeVerdict& spike)> on_spike = {};
  /// Ranks: all judge the mean loss and the largest norm, and so decide alike.
  Reducer reducer = {};
};

/// Keeps a loss explosion from ending a run: clips, skips or takes back the steps it comes from.
///
/// ```cpp
/// torchlore::SpikeGuard guard(optimizer, {.model = &*model});
/// for (auto& batch : *loader) {
///   optimizer.zero_grad();
///   auto loss = criterion(model->forward(batch.data), batch.target);
///   loss.backward();
///   auto norm = torchlore::gradient_stats(torchlore::gradients(*model)).norm;
///   auto verdict = guard.observe(loss, norm);
///   if (!verdict.steps()) continue;             // a roll-back has been done already
///   torchlore::clip_grad_norm_(*model, std::min(1.0, verdict.max_norm));
///   optimizer.step();
/// }
/// ```
/// Or as a stage: `TrainingStepOptions{.spike = SpikeGuardOptions{.model = &*model}}`.
///
/// **Triggers.** With t = log(loss) and the window of the last good losses: level = median of t;
/// spread = the largest of q84 - q50, (q97.7 - q50)/2 and min_spread (both are the standard
/// deviation if t is normal; the second one grows with a heavy upper tail). A loss is a spike if it
/// is not finite; or, after the warm-up, if (t - level)/spread > z_threshold and t is above
/// everything in the window. It is a jump if it is above `jump` × level, and a spike in that sense
/// or above `jump` × everything in the window: the losses of tiny batches spread over three orders
/// of magnitude by themselves.
///
/// **Actions** escalate with spikes in a row: clip, skip, roll back. A roll-back needs parameters
/// that may be the cause: if they have not been stepped since they gave a good loss, the data is,
/// and the step is skipped. Any good loss ends the row.
///
/// **Snapshots** hold what a loss has just shown to be good: they are taken when a good loss (less
/// than 2 spreads above the level) comes in, before its step. Parameters, optimizer state and
/// options, and the model's buffers are put back bit for bit, into the same tensors. Random
/// generators, data, schedules and a loss scaler go on: the same batches need not come again, and
/// the scale fits the gradients of now. The first snapshots allocate; later ones overwrite them.
/// @note Host syncs: 1 per window, and 1 per micro-batch with drop_bad_batches. Per window some
///       microseconds; with a model, one copy of its buffers; every `snapshot_every` windows a copy
///       of `snapshot_bytes()`. Not thread-safe.
class SpikeGuard {
 public:
  /// @param optimizer rolled back; must outlive the guard, as must the model.
  /// @param options   see SpikeGuardOptions.
  /// @throws c10::ValueError for an option outside its range; c10::NotImplementedError if the
  ///         optimizer's state is not known (see `optimizer_state_dict`) and snapshots are on.
  explicit SpikeGuard(torch::optim::Optimizer& optimizer, SpikeGuardOptions options = {});
  /// Several optimizers that share one loss. @throws as above, and c10::ValueError for none or a
  /// null pointer.
  explicit SpikeGuard(std::vector<torch::optim::Optimizer*> optimizers,
                      SpikeGuardOptions options = {});
  SpikeGuard(SpikeGuard&&) noexcept;
  SpikeGuard& operator=(SpikeGuard&&) noexcept;
  SpikeGuard(const SpikeGuard&) = delete;
  SpikeGuard& operator=(const SpikeGuard&) = delete;
  ~SpikeGuard();

  /// Judges a step by its loss and the norm of its gradients, and acts.
  /// @param loss 0-d mean. @param norm 0-d, unscaled, before clipping; undefined if it is not
  ///             known: then nothing can be clipped.
  /// @return what to do; a roll-back, and buffers put back for a skip, have been done.
  /// @throws c10::ValueError for a loss that is not 0-d; c10::Error for losses that stay inf or
  ///         NaN.
  SpikeVerdict observe(const at::Tensor& loss, const at::Tensor& norm = {});

  /// Counts a micro-batch's loss in, for `observe_window`. Host syncs: 0.
  void add(const Loss& loss);
  /// As `observe`, for the mean over all that was added since the last one.
  SpikeVerdict observe_window(const at::Tensor& norm = {});

  /// Drops what was added since: a window that is given up.
  void reset_window();

  /// Whether a micro-batch is better left out, before its backward pass: its loss is not finite, or
  /// a jump. Then its buffers have been put back. Collective over ranks. Host syncs: 1.
  bool drop(const at::Tensor& loss);

  /// Spikes so far; dropped micro-batches do not count.
  int64_t spikes() const;
  /// Roll-backs so far.
  int64_t roll_backs() const;
  /// Micro-batches that `drop` left out.
  int64_t dropped() const;
  /// The last spike; `reason` none if there was none.
  const SpikeVerdict& last_spike() const;
  /// What the learning rates are multiplied by now, on behalf of roll-backs.
  double rate_factor() const;
  /// What a snapshot takes now: parameters, optimizer state, and buffers of the model; 0 if there
  /// are no snapshots. With a model its buffers are kept once more.
  Bytes snapshot_bytes() const;

  /// Statistics and counters. The snapshot is not part of it: after loading, the next good loss
  /// makes a new one.
  StateDict state_dict() const;
  /// Takes the saved state over. @throws c10::ValueError if something is missing or out of range;
  /// nothing is changed then.
  void load_state_dict(const StateDict& state);
  /// Throws what `load_state_dict` would; changes nothing.
  void check_state_dict(const StateDict& state) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace torchlore
