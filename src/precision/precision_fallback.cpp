#include "torchlore/precision/precision_fallback.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "torchlore/core/error.hpp"
#include "torchlore/precision/loss_scaler.hpp"
#include "torchlore/precision/precision.hpp"

namespace torchlore {

PrecisionFallback::PrecisionFallback(PrecisionFallbackOptions options)
    : options_(std::move(options)), return_after_(options_.return_after) {
  check_not_negative("scale_below", options_.scale_below);
  check_count("steps", options_.steps);
  TORCH_CHECK_VALUE(options_.skipped_in_a_row >= 0, "skipped_in_a_row must be 0 or more, but is ",
                    options_.skipped_in_a_row);
  TORCH_CHECK_VALUE(options_.to == at::kBFloat16 || options_.to == at::kFloat,
                    "float16 can fall back to BFloat16 or Float, but `to` is ", options_.to);
  TORCH_CHECK_VALUE(options_.return_after >= 0, "return_after must be 0 or more, but is ",
                    options_.return_after);
  TORCH_CHECK_VALUE(std::isfinite(options_.return_backoff) && options_.return_backoff >= 1,
                    "return_backoff must be a finite number, 1 or above, but is ",
                    options_.return_backoff);
  check_positive("return_scale", options_.return_scale);
}

std::optional<c10::ScalarType> PrecisionFallback::dtype() const {
  if (!fallen_back_) return at::kHalf;
  return options_.to == at::kFloat ? std::nullopt : std::optional(options_.to);
}

bool PrecisionFallback::update(LossScaler& scaler, bool stepped) {
  ++updates_;
  good_ += stepped ? 1 : 0;
  if (fallen_back_) {
    if (options_.return_after == 0 || good_ < return_after_) return false;
    come_back(scaler);
    return true;
  }
  auto reason = reason_to_leave(scaler, stepped);
  const bool any_leaves = detail::LargestOverRanks(options_.reducer)(reason.empty() ? 0 : 1) != 0;
  if (any_leaves && reason.empty()) reason = "another rank fell back";
  if (reason.empty()) {
    if (good_ >= options_.return_after) return_after_ = options_.return_after;
    return false;
  }
  leave(reason);
  return true;
}

std::string PrecisionFallback::reason_to_leave(const LossScaler& scaler, bool stepped) {
  skipped_ = stepped ? 0 : skipped_ + 1;
  at_floor_ = !stepped && scaler.at_floor() ? at_floor_ + 1 : 0;
  // A scale that is not low gets there by overflows only.
  if (!stepped || low_) low_ = scaler.get_scale() < options_.scale_below;
  below_ = low_ ? below_ + 1 : 0;
  if (below_ >= options_.steps) {
    return c10::str("the loss scale was below ", options_.scale_below, " for ", below_, " steps");
  }
  if (at_floor_ >= options_.steps) {
    return c10::str("gradients overflowed at the smallest loss scale for ", at_floor_, " steps");
  }
  if (options_.skipped_in_a_row > 0 && skipped_ >= options_.skipped_in_a_row) {
    return c10::str(skipped_, " steps in a row were skipped");
  }
  return {};
}

void PrecisionFallback::leave(const std::string& reason) {
  fallen_back_ = true;
  good_ = skipped_ = below_ = at_floor_ = 0;
  low_ = false;
  announce(reason);
}

void PrecisionFallback::come_back(LossScaler& scaler) {
  scaler.update(options_.return_scale);
  fallen_back_ = false;
  const auto waited = return_after_;
  constexpr double kLongest = 0x1p40;
  return_after_ = static_cast<int64_t>(
      std::min(std::ceil(static_cast<double>(return_after_) * options_.return_backoff), kLongest));
  good_ = 0;
  announce(c10::str(waited, " steps have gone by"));
}

void PrecisionFallback::announce(const std::string& reason) const {
  if (!options_.on_change) return;
  options_.on_change({updates_, fallen_back_ ? at::kHalf : options_.to,
                      fallen_back_ ? options_.to : at::kHalf, reason});
}

Precision Precision::with_fallback(PrecisionFallbackOptions options) const {
  TORCH_CHECK_VALUE(dtype_ == at::kHalf && scaler_.has_value() && scaler_->enabled,
                    "with_fallback is for Precision::fp16() with an enabled loss scaler: nothing "
                    "else has a narrower range than what it would fall back to");
  auto precision = *this;
  precision.fallback_.emplace(std::move(options));
  return precision;
}

StateDict PrecisionFallback::state_dict() const {
  return {{"fallen_back", state_value(int64_t{fallen_back_})},
          {"low", state_value(int64_t{low_})},
          {"updates", state_value(updates_)},
          {"good", state_value(good_)},
          {"skipped", state_value(skipped_)},
          {"below", state_value(below_)},
          {"at_floor", state_value(at_floor_)},
          {"return_after", state_value(return_after_)}};
}

void PrecisionFallback::load_state_dict(const StateDict& state) {
  auto loaded = *this;
  loaded.fallen_back_ = state_int(state, "fallen_back") != 0;
  loaded.low_ = state_int(state, "low") != 0;
  loaded.updates_ = state_int(state, "updates");
  loaded.good_ = state_int(state, "good");
  loaded.skipped_ = state_int(state, "skipped");
  loaded.below_ = state_int(state, "below");
  loaded.at_floor_ = state_int(state, "at_floor");
  loaded.return_after_ = state_int(state, "return_after");
  *this = std::move(loaded);
}

}  // namespace torchlore
