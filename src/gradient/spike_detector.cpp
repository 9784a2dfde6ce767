#include "spike_detector.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace torchlore::detail {
namespace {

/// Where a normal distribution has one and two standard deviations above its middle, in percent.
constexpr double kOneSigma = 84.1345;
constexpr double kTwoSigma = 97.7250;
/// A loss this far above the level is no spike, but nothing to take for good either.
constexpr double kCalm = 2;
constexpr double kLowest = std::numeric_limits<double>::lowest();

}  // namespace

SpikeDetector::SpikeDetector(const SpikeGuardOptions& options)
    : jump_(options.jump),
      z_threshold_(options.z_threshold),
      min_spread_(options.min_spread),
      capacity_(options.window),
      warmup_(options.warmup),
      log_scale_(options.log_scale),
      window_(options.window) {}

SpikeDetector::Judgement SpikeDetector::judge(double loss) const {
  Judgement result{SpikeReason::none, std::nan(""), std::nan("")};
  if (!window_.empty()) {
    const double median = window_.percentile(50);
    const double value = log_scale_ ? std::log(std::fmax(loss, 0.0)) : loss;
    result.level = log_scale_ ? std::exp(median) : median;
    result.z_score = value == median ? 0 : (value - median) / spread(median);
    const bool stands_out = warm() && result.z_score > z_threshold_ && value > window_.largest();
    // Losses of a batch of one spread over more than three orders of magnitude by themselves.
    const double largest = log_scale_ ? std::exp(window_.largest()) : window_.largest();
    const bool jumps =
        result.level > 0 && loss > jump_ * result.level && (stands_out || loss > jump_ * largest);
    if (stands_out) result.reason = SpikeReason::z_score;
    if (jumps) result.reason = SpikeReason::jump;
  }
  if (!std::isfinite(loss)) result.reason = SpikeReason::non_finite;
  return result;
}

/// The upper half alone: a loss that falls fast, or is now and then very good, is no noise upwards.
double SpikeDetector::spread(double median) const {
  const double least = log_scale_ ? min_spread_ : min_spread_ * std::fabs(median);
  const double one = window_.percentile(kOneSigma) - median;
  const double two = (window_.percentile(kTwoSigma) - median) / 2;
  return std::max({least, one, two});
}

bool SpikeDetector::calm(const Judgement& judgement) const {
  return !warm() || judgement.z_score < kCalm;
}

void SpikeDetector::remember(double loss) {
  if (!log_scale_) return window_.add(loss);
  if (loss > 0) window_.add(std::log(loss));
}

void SpikeDetector::check(const at::Tensor& tensor) const {
  SortedWindow::from(tensor, capacity_, "losses", kLowest);
}

void SpikeDetector::load(const at::Tensor& tensor) {
  window_ = SortedWindow::from(tensor, capacity_, "losses", kLowest);
}

}  // namespace torchlore::detail
