#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <utility>

#include "torchlore/precision/loss_scaler.hpp"
#include "torchlore/precision/precision_fallback.hpp"

namespace torchlore {

/// In which precision `TrainingStep` runs the forward pass.
class Precision {
 public:
  /// As the model is: no autocast, no loss scaler.
  static Precision fp32() { return {}; }
  /// Autocast to bfloat16. Its range is float32's, so no loss scaler is needed.
  static Precision bf16() {
    Precision precision;
    precision.dtype_ = at::kBFloat16;
    return precision;
  }
  /// Autocast to float16, with a `LossScaler`, because its range is narrow.
  static Precision fp16(LossScalerOptions scaler = {}) {
    Precision precision;
    precision.dtype_ = at::kHalf;
    precision.scaler_ = std::move(scaler);
    return precision;
  }

  /// Leaves float16 when its range is too narrow, by the rule of `PrecisionFallback`.
  /// @throws c10::ValueError for an option out of range, and without float16.
  Precision with_fallback(PrecisionFallbackOptions options = {}) const;

  /// The dtype of autocast, if there is one.
  const std::optional<at::ScalarType>& dtype() const { return dtype_; }
  /// The options of the loss scaler, if there is one.
  const std::optional<LossScalerOptions>& scaler() const { return scaler_; }
  /// The rule that leaves float16, if there is one.
  const std::optional<PrecisionFallback>& fallback() const { return fallback_; }

 private:
  std::optional<at::ScalarType> dtype_ = std::nullopt;
  std::optional<LossScalerOptions> scaler_ = std::nullopt;
  std::optional<PrecisionFallback> fallback_ = std::nullopt;
};

}  // namespace torchlore
