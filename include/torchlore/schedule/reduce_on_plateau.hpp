#pragma once

#include <cstdint>
#include <vector>

#include "torchlore/core/reducer.hpp"
#include "torchlore/core/state_dict.hpp"
#include "torchlore/schedule/learning_rate.hpp"

namespace torchlore {

/// Options of `ReduceOnPlateau`; names and defaults are those of PyTorch's ReduceLROnPlateau.
struct ReduceOnPlateauOptions {
  /// Which metric is better: a smaller one (a loss) or a larger one (an accuracy).
  enum class Mode : uint8_t {
    min,  ///< a smaller one
    max,  ///< a larger one
  };
  /// What the threshold is measured in: the best metric, or the metric's own unit.
  enum class ThresholdMode : uint8_t {
    rel,  ///< a share of the best metric
    abs,  ///< the metric's unit
  };

  Mode mode = Mode::min;    ///< see Mode
  double factor = 0.1;      ///< the rates are multiplied by it; in (0, 1)
  int64_t patience = 10;    ///< so many calls without improvement are tolerated; 0 or more
  double threshold = 1e-4;  ///< a smaller gain is no improvement; 0 or above
  ThresholdMode threshold_mode = ThresholdMode::rel;  ///< see ThresholdMode
  int64_t cooldown = 0;  ///< calls after a reduction that are not counted; 0 or more
  /// Below this no base rate falls: one number for all groups, or one per group.
  std::vector<double> min_lr = {0.0};
  double eps = 1e-8;  ///< a reduction by no more than this is left out; 0 or above
  /// Ranks of data-parallel training: the metric is averaged over them, so that all decide alike.
  Reducer reducer = {};
};

/// Lowers the learning rate when a metric no longer improves.
///
/// ```cpp
/// torchlore::LearningRate rate(optimizer, torchlore::schedule::warmup(200));  // any schedule
/// torchlore::ReduceOnPlateau plateau(rate, {.factor = 0.5, .patience = 3});
/// for (…) { train_epoch(); plateau.step(validation_loss()); }
/// ```
/// It multiplies base rates, so any schedule goes on below; with `schedule::constant()` the rates are
/// those of PyTorch's ReduceLROnPlateau. In a `TrainingStep` take `*step.learning_rate()`. A metric
/// that is NaN is no improvement.
class ReduceOnPlateau {
 public:
  /// @param rate must outlive this.
  /// @throws c10::ValueError for an option outside its range.
  explicit ReduceOnPlateau(LearningRate& rate, ReduceOnPlateauOptions options = {});

  /// Looks at a metric, once per evaluation.
  /// @return whether it lowered a rate.
  /// @throws c10::ValueError if there are several `min_lr`, and not one for each group.
  /// @note Host syncs: none, but what the reducer makes.
  bool step(double metric);

  /// The best metric so far; infinity (or -infinity) before the first.
  double best() const { return best_; }
  /// Calls in a row without improvement.
  int64_t bad_steps() const { return bad_steps_; }

  /// Best metric, bad steps, what is left of the cool-down. The base rates are in the LearningRate's.
  StateDict state_dict() const;
  /// Takes the saved state over. @throws c10::ValueError if something is missing.
  void load_state_dict(const StateDict& state);

 private:
  bool better(double metric) const;
  bool reduce();

  LearningRate* rate_;
  ReduceOnPlateauOptions options_;
  double best_;
  int64_t bad_steps_ = 0;
  int64_t cooldown_left_ = 0;
};

}  // namespace torchlore
