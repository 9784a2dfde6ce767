#include "torchlore/gradient/clip.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "nonfinite.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/gradient/clip_grad.hpp"

namespace torchlore::clip {
namespace {

/// Limits the norm to a constant, or to a schedule's value.
class NormClipper final : public Clipper {
 public:
  NormClipper(double constant, ThresholdSchedule schedule, const ClipNormOptions& options)
      : constant_(constant), schedule_(std::move(schedule)), options_(options) {
    TORCH_CHECK_VALUE(options.norm_type > 0, "clip::norm(…, norm_type) must be above 0, but is ",
                      options.norm_type);
  }

  std::optional<double> norm_type() const override { return options_.norm_type; }

  double max_norm(const at::Tensor& norm) override {
    if (options_.error_if_nonfinite) detail::check_finite_norm(norm);
    if (!schedule_) return constant_;
    const double threshold = schedule_(steps_);
    TORCH_CHECK_VALUE(threshold > 0, "the schedule of clip::norm(schedule) gave ", threshold,
                      " for step ", steps_,
                      ", but a largest norm must be above 0; use infinity not to clip");
    ++steps_;
    return threshold;
  }

  StateDict state_dict() const override {
    if (!schedule_) return {};
    return {{"steps", state_value(steps_)}};
  }

  void load_state_dict(const StateDict& state) override {
    if (!schedule_) return;
    const auto steps = state_int(state, "steps");
    check_not_negative("steps", static_cast<double>(steps));
    steps_ = steps;
  }

 private:
  double constant_;
  ThresholdSchedule schedule_;
  ClipNormOptions options_;
  int64_t steps_ = 0;
};

/// Limits every element.
class ValueClipper final : public Clipper {
 public:
  explicit ValueClipper(double clip_value) : clip_value_(clip_value) {}
  std::optional<double> norm_type() const override { return std::nullopt; }
  void divide_and_clip_(const ParameterView& parameters, const at::Tensor& divisor) override {
    Clipper::divide_and_clip_(parameters, divisor);
    clip_grad_value_(parameters, clip_value_);
  }

 private:
  double clip_value_;
};

void check_span(double from, double to, int64_t steps) {
  check_positive("the first threshold", from);
  check_positive("the last threshold", to);
  check_count("the steps of a threshold schedule", steps);
}

/// How much of `steps` has passed, 1 at most.
double share(int64_t step, int64_t steps) {
  return static_cast<double>(std::min(step, steps)) / static_cast<double>(steps);
}

}  // namespace

Clip norm(double max_norm, const ClipNormOptions& options) {
  TORCH_CHECK_VALUE(max_norm > 0, "clip::norm(max_norm) must be above 0, but is ", max_norm,
                    "; use infinity to measure without clipping");
  return NormClipper(max_norm, nullptr, options);
}

Clip norm(ThresholdSchedule schedule, const ClipNormOptions& options) {
  TORCH_CHECK_VALUE(schedule != nullptr, "clip::norm(schedule) needs a function, but got none");
  return NormClipper(0, std::move(schedule), options);
}

Clip value(double clip_value) {
  check_positive("clip::value(clip_value)", clip_value);
  return ValueClipper(clip_value);
}

namespace threshold {

ThresholdSchedule epoch_ramp(int64_t epochs, int64_t steps_per_epoch,
                             const EpochRampOptions& options) {
  check_count("epoch_ramp(epochs)", epochs);
  check_count("epoch_ramp(…, steps_per_epoch)", steps_per_epoch);
  check_positive("low", options.low);
  check_in_range("high", options.high, options.low, kNoClip);
  check_positive("slope", options.slope);
  return [epochs, steps_per_epoch, options](int64_t step) {
    const auto epoch = static_cast<double>(step / steps_per_epoch);
    const double ramp = options.slope * epoch / static_cast<double>(epochs);
    return std::max(options.low, std::min(options.high, ramp));
  };
}

ThresholdSchedule linear(double from, double to, int64_t steps) {
  check_span(from, to, steps);
  return [=](int64_t step) { return std::lerp(from, to, share(step, steps)); };
}

ThresholdSchedule exponential(double from, double to, int64_t steps) {
  check_span(from, to, steps);
  return [=](int64_t step) { return from * std::pow(to / from, share(step, steps)); };
}

}  // namespace threshold
}  // namespace torchlore::clip
