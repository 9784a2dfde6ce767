#include "torchlore/privacy/prv.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "loss_composition.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

/// The privacy loss log(P / Q) of a sampled Gaussian, for a result drawn from P (with the example).
class SampledGaussianLoss {
 public:
  explicit SampledGaussianLoss(const PrivacyEvent& event)
      : q_(event.sample_rate), sigma_(event.noise_multiplier) {}

  /// The probability of a loss above t.
  double above(double t) const {
    if (t <= std::log1p(-q_)) return 1;
    // The result at which the loss is t.
    const double z = q_ == 1 ? t : std::log((std::expm1(t) + q_) / q_);
    const double with = std::erfc((2 * z * sigma_ * sigma_ - 1) / (2 * M_SQRT2 * sigma_));
    const double without = std::erfc((2 * z * sigma_ * sigma_ + 1) / (2 * M_SQRT2 * sigma_));
    return (q_ * with + (1 - q_) * without) / 2;
  }

  /// The mean: the integral of density and loss over results, by the trapezoidal rule. See rdp.cpp.
  double mean() const {
    const double variance = sigma_ * sigma_;
    const double step = std::min(sigma_ / 2, variance / 3);
    const auto gaussian = [&](double x) { return std::exp(-x * x / (2 * variance)); };
    double sum = 0;
    for (double x = -9 * sigma_; x <= 1 + 9 * sigma_; x += step) {
      const double density = (1 - q_) * gaussian(x) + q_ * gaussian(x - 1);
      const double t = (2 * x - 1) / (2 * variance);
      const double loss = t > 600 ? std::log(q_) + t : std::log1p(q_ * std::expm1(t));
      sum += density * loss;
    }
    return sum * step / (sigma_ * std::sqrt(2 * M_PI));
  }

 private:
  double q_;
  double sigma_;
};

int64_t total_steps(const PrivacyLedger& ledger) {
  int64_t sum = 0;
  for (const auto& event : ledger.events()) sum += event.steps;
  return sum;
}

/// Source: theorem 5.5 and section 5.1 of the paper.
LossGrid grid_of(const PrivacyLedger& ledger, double epsilon_error, double delta_error) {
  const auto steps = static_cast<double>(total_steps(ledger));
  double range = rdp_epsilon(ledger, delta_error / 4).value;
  for (auto event : ledger.events()) {
    event.steps = 1;
    range = std::max(range, rdp_epsilon(PrivacyLedger({event}), delta_error / (8 * steps)).value);
  }
  range = std::max(range, epsilon_error) + 3;
  const double step = epsilon_error / std::sqrt(steps / 2 * std::log(12 / delta_error));
  return LossGrid::covering(range, step, "PRV accountant", "epsilon_error", epsilon_error);
}

void check_events(const PrivacyLedger& ledger) {
  for (const auto& event : ledger.events()) {
    TORCH_CHECK_NOT_IMPLEMENTED(event.noise == Noise::gaussian,
                                "the PRV accountant knows the Gaussian mechanism only; account for "
                                "the Laplace mechanism by pld_epsilon");
    TORCH_CHECK_NOT_IMPLEMENTED(
        event.sampling == Sampling::poisson || event.sample_rate == 1,
        "the PRV accountant has no theorem for batches of a fixed size; draw "
        "them by Poisson sampling");
  }
}

/// Puts a loss on the grid, and says by how much the points must be shifted to keep its mean.
double discretise(const SampledGaussianLoss& loss, const LossGrid& grid,
                  std::vector<double>& mass) {
  const int64_t half = grid.points / 2;
  double above = loss.above((static_cast<double>(-half) - 0.5) * grid.step);
  double mean = 0;
  double all = 0;
  for (int64_t i = -half; i < half; ++i) {
    const double next = loss.above((static_cast<double>(i) + 0.5) * grid.step);
    const double here = above - next;
    above = next;
    mass[grid.place(i)] = here;
    mean += here * static_cast<double>(i) * grid.step;
    all += here;
  }
  for (double& m : mass) m /= all;
  return loss.mean() - mean / all;
}

ComposedLoss compose(const PrivacyLedger& ledger, const LossGrid& grid) {
  LossComposer composer(grid);
  double shift = 0;
  for (const auto& event : ledger.events()) {
    const auto steps = static_cast<double>(event.steps);
    shift += steps * discretise(SampledGaussianLoss(event), grid, composer.mass());
    composer.add(steps);
  }
  return composer.composed(shift);
}

}  // namespace

PrivacyBounds prv_epsilon(const PrivacyLedger& ledger, double delta, PrvOptions options) {
  TORCH_CHECK_VALUE(delta > 0 && delta < 1, "delta must lie in (0, 1), but is ", delta);
  check_positive("epsilon_error", options.epsilon_error);
  check_not_negative("delta_error", options.delta_error);
  const double delta_error = options.delta_error > 0 ? options.delta_error : delta / 1000;
  TORCH_CHECK_VALUE(delta_error < delta, "delta_error must be below delta (", delta, "), but is ",
                    delta_error);
  check_events(ledger);
  if (ledger.empty()) return {};
  const auto loss = compose(ledger, grid_of(ledger, options.epsilon_error, delta_error));
  PrivacyBounds bounds;
  bounds.lower = std::max(0.0, loss.epsilon_at(delta + delta_error) - options.epsilon_error);
  bounds.estimate = loss.epsilon_at(delta);
  bounds.upper = loss.epsilon_at(delta - delta_error) + options.epsilon_error;
  return bounds;
}

PrivacyBounds prv_delta(const PrivacyLedger& ledger, double epsilon, PrvOptions options) {
  check_not_negative("epsilon", epsilon);
  check_positive("epsilon_error", options.epsilon_error);
  check_not_negative("delta_error", options.delta_error);
  const double delta_error = options.delta_error > 0 ? options.delta_error : 1e-10;
  check_events(ledger);
  if (ledger.empty()) return {};
  const auto loss = compose(ledger, grid_of(ledger, options.epsilon_error, delta_error));
  PrivacyBounds bounds;
  bounds.lower = std::max(0.0, loss.delta_at(epsilon + options.epsilon_error) - delta_error);
  bounds.estimate = loss.delta_at(epsilon);
  bounds.upper = std::min(1.0, loss.delta_at(epsilon - options.epsilon_error) + delta_error);
  return bounds;
}

}  // namespace torchlore
