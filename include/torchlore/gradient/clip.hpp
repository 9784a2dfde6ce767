#pragma once

#include <cstdint>
#include <functional>

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
