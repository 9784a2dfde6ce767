#include <algorithm>
#include <cmath>

#include "nonfinite.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/gradient/clip.hpp"

namespace torchlore::clip {
namespace {

class ZClipper final : public Clipper {
 public:
  explicit ZClipper(const ZClipOptions& options) : options_(options) {}

  std::optional<double> norm_type() const override { return options_.norm_type; }
  bool adaptive() const override { return true; }

  double max_norm(const at::Tensor& norm) override {
    if (options_.error_if_nonfinite) detail::check_finite_norm(norm);
    const double value = norm.item().toDouble();
    if (!std::isfinite(value)) return options_.max_norm;
    const double limit = steps_ < options_.warmup ? kNoClip : spike_limit(value);
    remember(std::min(value, limit));
    return std::min(limit, options_.max_norm);
  }

  StateDict state_dict() const override {
    return {{"steps", state_value(steps_)},
            {"mean", state_value(mean_)},
            {"variance", state_value(variance_)}};
  }

  void load_state_dict(const StateDict& state) override {
    const auto steps = state_int(state, "steps");
    const double mean = state_double(state, "mean");
    const double variance = state_double(state, "variance");
    check_not_negative("steps", static_cast<double>(steps));
    check_not_negative("mean", mean);
    check_not_negative("variance", variance);
    steps_ = steps;
    mean_ = mean;
    variance_ = variance;
  }

 private:
  /// Infinity if the norm is no spike.
  double spike_limit(double norm) const {
    const double deviation = std::sqrt(variance_);
    if (deviation == 0) return kNoClip;
    const double z = (norm - mean_) / deviation;
    const double threshold = options_.z_threshold;
    return z > threshold ? mean_ + deviation * threshold * threshold / z : kNoClip;
  }

  void remember(double norm) {
    ++steps_;
    if (steps_ > options_.warmup) {
      mean_ = options_.alpha * mean_ + (1 - options_.alpha) * norm;
      const double off = norm - mean_;
      variance_ = options_.alpha * variance_ + (1 - options_.alpha) * off * off;
      return;
    }
    // Mean and variance of the first norms, one by one (Welford).
    const auto n = static_cast<double>(steps_);
    const double off = norm - mean_;
    mean_ += off / n;
    variance_ += (off * (norm - mean_) - variance_) / n;
  }

  ZClipOptions options_;
  int64_t steps_ = 0;
  double mean_ = 0;
  double variance_ = 0;
};

}  // namespace

Clip zclip(const ZClipOptions& options) {
  TORCH_CHECK_VALUE(options.alpha > 0 && options.alpha < 1,
                    "alpha must lie between 0 and 1, both excluded, but is ", options.alpha);
  check_positive("z_threshold", options.z_threshold);
  TORCH_CHECK_VALUE(options.warmup >= 2, "warmup must be 2 or more, but is ", options.warmup,
                    "; one norm has no variance");
  TORCH_CHECK_VALUE(options.max_norm > 0, "max_norm must be above 0, but is ", options.max_norm,
                    "; use infinity for no limit on top");
  check_norm_type(options.norm_type);
  return ZClipper(options);
}

}  // namespace torchlore::clip
