#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "torchlore/gradient/clipper.hpp"

namespace torchlore {

/// Options of `clip::norm`.
struct ClipNormOptions {
  /// The p of the p-norm: 2, 1, infinity, or any p > 0.
  double norm_type = 2.0;
  /// Throw c10::Error if the norm is inf or NaN, before anything is written. Costs a host sync. A
  /// loss scaler skips such a step first.
  bool error_if_nonfinite = false;
};

/// The largest norm as a function of the steps made: `schedule(0)` is for the first one.
using ThresholdSchedule = std::function<double(int64_t step)>;

/// Options of `clip::autoclip`.
struct AutoClipOptions {
  /// How many norms are remembered, newest first: 8 bytes each, on the host. The published
  /// algorithm remembers all of a run; up to this many steps both are the same.
  int64_t history = 10'000;
  /// The p of the p-norm.
  double norm_type = 2.0;
  /// As in ClipNormOptions.
  bool error_if_nonfinite = false;
};

/// Options of `clip::zclip`; the defaults are the paper's.
struct ZClipOptions {
  /// How much of the averages of the norm and of its variance is kept in a step; in (0, 1).
  double alpha = 0.97;
  /// From how many standard deviations above the average a norm is a spike; > 0.
  double z_threshold = 2.5;
  /// Steps whose norms make the first averages, unclipped but for max_norm; 2 or more.
  int64_t warmup = 25;
  /// A limit on top, from the first step on; > 0.
  double max_norm = std::numeric_limits<double>::infinity();
  /// The p of the p-norm.
  double norm_type = 2.0;
  /// As in ClipNormOptions.
  bool error_if_nonfinite = false;
};

/// Options of `clip::agc`; the defaults are the paper's.
struct AgcOptions {
  /// λ: the largest norm of a unit's gradient, relative to its weights' norm; finite and > 0.
  double clipping = 0.01;
  /// What a unit's weights count at least, so that zero weights can learn; finite and > 0.
  double eps = 1e-3;
  /// Parameters that are not clipped; the paper leaves the last layer out. Made by
  /// `model->head->parameters()` or `parameters_named(*model, {"head"})`.
  std::vector<at::Tensor> skip = {};
};

/// The ways to clip.
///
/// All limit the gradients as they are after loss scale and accumulation are divided out. None of
/// them repairs gradients that are inf or NaN: by norm, all become NaN or 0, as in LibTorch; a loss
/// scaler skips such a step, and a `SpikeGuard` can. A norm that is not finite enters no history.
namespace clip {

/// No clipping, and no norm measured.
inline Clip none() { return {}; }

/// `clip_grad_norm_` over the gradients of all optimizers together.
/// @param max_norm > 0; infinity only measures.
/// @param options see ClipNormOptions.
/// @throws c10::ValueError for a max_norm or a norm_type that is not above 0.
/// @note Host syncs: 0 (1 with error_if_nonfinite).
Clip norm(double max_norm, const ClipNormOptions& options = {});

/// The same with a threshold that changes from step to step; counts the steps it decided on, and
/// saves that count.
/// @param schedule one of `threshold::`, or any function of the steps made; it must own what it
///                 uses. A value that is not above 0 throws c10::ValueError in that step.
/// @param options see ClipNormOptions.
/// @note Host syncs: as above.
Clip norm(ThresholdSchedule schedule, const ClipNormOptions& options = {});

/// AutoClip: limits the norm to a percentile of the norms so far, this step's included.
///
/// The percentile is numpy's default, interpolated linearly between the two nearest norms. With 0
/// for it (most norms were 0) the limit is 1e-12.
/// @param percentile in [0, 100]; the paper's choice is 10: most steps are then clipped.
/// @param options see AutoClipOptions.
/// @throws c10::ValueError for an option outside its range.
/// @note O(history) moves of 8 bytes, some microseconds at most. Host syncs: 1 (0 on the CPU).
/// Source: Seetharaman et al. (2020), arXiv:2007.14469.
Clip autoclip(double percentile = 10.0, const AutoClipOptions& options = {});

/// ZClip: limits only norms that are spikes beside the running average.
///
/// With μ and σ the averages of the norm n and z = (n - μ)/σ: where z > z_threshold the limit is
/// μ + σ·z_threshold²/z, the lower the larger the spike. Then μ ← α·μ + (1-α)·n and
/// σ² ← α·σ² + (1-α)·(n - μ)², with n as it is after this limit. While σ is 0 (all norms were
/// equal) there is no z, and nothing is clipped.
/// @param options see ZClipOptions.
/// @throws c10::ValueError for an option outside its range.
/// @note Host syncs: 1 (0 on the CPU).
/// Source: Kumar et al. (2025), arXiv:2504.02507.
Clip zclip(const ZClipOptions& options = {});

/// AGC: limits the gradient of each unit to λ times the norm of its weights.
///
/// A unit is what makes one output: a row (index of dimension 0) of a parameter with two or more
/// dimensions, else the whole parameter. With gradient g and weights w of a unit:
/// g ← g · λ·max(‖w‖, ε)/‖g‖ where ‖g‖ is larger. No norm over all gradients is measured, nothing
/// is remembered, and a unit's inf or NaN stays in that unit. The weights of transposed
/// convolutions have their outputs in dimension 1: put them in `skip`.
/// @param options see AgcOptions.
/// @throws c10::ValueError for an option outside its range; c10::NotImplementedError, in the step,
///         for a sparse gradient with more than one sparse dimension.
/// @note One read of weights and gradients; what is clipped or divided is written while it is in
///       the cache. Host syncs: 0. Gradients must be whole, not sharded over ranks.
/// Source: Brock et al. (2021), arXiv:2102.06171, eq. 3.
Clip agc(const AgcOptions& options = {});

/// `clip_grad_value_`. @param clip_value > 0 and finite.
Clip value(double clip_value);

/// Thresholds that change from step to step, for `clip::norm`.
namespace threshold {

/// Options of `epoch_ramp`.
struct EpochRampOptions {
  double low = 0.1;    ///< never below this; > 0
  double high = 1.0;   ///< never above this; >= low
  double slope = 0.5;  ///< what is reached after all epochs, but for the limits; > 0
};

/// max(low, min(high, slope · epoch / epochs)), with epochs counted from 0: low for the first
/// fifth, then rising by epochs to just below 0.5, with the defaults.
/// @param epochs of the whole run. @param steps_per_epoch optimizer steps, not micro-batches.
/// @throws c10::ValueError for counts below 1 and limits out of range.
ThresholdSchedule epoch_ramp(int64_t epochs, int64_t steps_per_epoch,
                             const EpochRampOptions& options = {});

/// From `from` to `to` in equal differences over `steps` steps, then `to`.
/// @throws c10::ValueError unless both are finite and > 0, and steps >= 1.
ThresholdSchedule linear(double from, double to, int64_t steps);

/// From `from` to `to` in equal ratios over `steps` steps, then `to`.
/// @throws c10::ValueError unless both are finite and > 0, and steps >= 1.
ThresholdSchedule exponential(double from, double to, int64_t steps);

}  // namespace threshold
}  // namespace clip
}  // namespace torchlore
