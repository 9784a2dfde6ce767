#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "torchlore/core/reducer.hpp"
#include "torchlore/core/state_dict.hpp"

namespace torchlore {

class LossScaler;

/// A change of precision, as `PrecisionFallbackOptions::on_change` is told.
struct PrecisionChange {
  int64_t step = 0;                                   ///< the update that made it, from 1
  c10::ScalarType from = c10::ScalarType::Undefined;  ///< float32: no autocast
  c10::ScalarType to = c10::ScalarType::Undefined;    ///< the same
  std::string reason = {};                            ///< which rule spoke
};

/// Options of `PrecisionFallback`. Of the first three rules, the one that speaks first decides.
struct PrecisionFallbackOptions {
  /// Float16 is given up when the loss scale has been below this for `steps` updates in a row; 0
  /// switches the rule off.
  double scale_below = 1e-5;
  /// For how many updates in a row: of the rule above, and of overflows at the scaler's `min_scale`.
  int64_t steps = 3;
  /// Or when so many steps in a row were skipped; 0 switches the rule off. From GradScaler's first
  /// scale, 65536, the rule above needs 33 overflows in a row: this one is quicker.
  int64_t skipped_in_a_row = 10;
  /// What takes float16's place: at::kBFloat16, or at::kFloat for no autocast.
  c10::ScalarType to = c10::ScalarType::BFloat16;
  /// Steps in the other precision before float16 is tried again; 0: never.
  int64_t return_after = 1000;
  /// Each return that led back multiplies `return_after`; >= 1. Forgotten when float16 has gone well
  /// for `return_after` steps.
  double return_backoff = 2;
  /// The loss scale to return with.
  double return_scale = 1024;
  /// Told of each change.
  std::function<void(const PrecisionChange&)> on_change = {};
  /// Ranks, for loops whose scaler has no reducer: all fall back if one does. Where found_inf is
  /// agreed on, decisions are equal by themselves.
  Reducer reducer = {};
};

/// Leaves float16 for a wider precision when its range is too narrow for the model, and tries it
/// again later.
///
/// ```cpp
/// torchlore::LossScaler scaler;
/// torchlore::PrecisionFallback precision;
/// for (auto& batch : *loader) {
///   optimizer.zero_grad();
///   at::Tensor loss;
///   {
///     torchlore::Autocast amp(device, precision.dtype(), {.enabled = precision.autocast()});
///     loss = criterion(model->forward(batch.data), batch.target);
///   }
///   bool stepped = true;
///   if (precision.fallen_back()) {
///     loss.backward();
///     optimizer.step();
///   } else {
///     scaler.scale(loss).backward();
///     stepped = scaler.step(optimizer);
///     scaler.update();
///   }
///   precision.update(scaler, stepped);
/// }
/// ```
/// Fallen back, no loss is scaled and no gradient checked, as bfloat16 and float32 need neither. In
/// a `TrainingStep` it is `Precision::fp16().with_fallback()`.
/// @note Host syncs: the scale is read only after a skipped step, and while it is below
///       `scale_below`; 1 or 2 then.
class PrecisionFallback {
 public:
  /// @throws c10::ValueError for an option out of range.
  explicit PrecisionFallback(PrecisionFallbackOptions options = {});

  /// Whether float16 has been left.
  bool fallen_back() const { return fallen_back_; }
  /// Whether the forward pass runs in autocast.
  bool autocast() const { return dtype().has_value(); }
  /// The dtype of autocast; nothing for none.
  std::optional<c10::ScalarType> dtype() const;

  /// After each optimizer step, or skipped one. On a return it sets the scaler's scale.
  /// @param stepped false if the scaler skipped the step.
  /// @return whether the precision is another from now on.
  bool update(LossScaler& scaler, bool stepped);

  /// Where it is, and what it has counted.
  StateDict state_dict() const;
  /// Takes the saved state over. @throws c10::ValueError if something is missing.
  void load_state_dict(const StateDict& state);

 private:
  std::string reason_to_leave(const LossScaler& scaler, bool stepped);
  void leave(const std::string& reason);
  void come_back(LossScaler& scaler);
  void announce(const std::string& reason) const;

  PrecisionFallbackOptions options_;
  bool fallen_back_ = false;
  bool low_ = false;  // the scale was below when it was last read
  int64_t updates_ = 0;
  int64_t good_ = 0;      // steps since the last change
  int64_t skipped_ = 0;   // in a row
  int64_t below_ = 0;     // updates in a row
  int64_t at_floor_ = 0;  // updates in a row
  int64_t return_after_;  // with back-off
};

}  // namespace torchlore
