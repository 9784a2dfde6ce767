#include "torchlore/privacy/prv.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "check_delta.hpp"
#include "loss_composition.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

/// Neighbours: with one example less, or with one more.
enum class Direction : uint8_t { remove, add };

/// The privacy loss of a sampled Gaussian: log u for a result of the mixture (an example less), or -log u
/// for one of the noise alone (an example more), where u = 1 - q + q e^((2x - 1) / 2 sigma^2) is the
/// mixture's density over that of the noise.
class SampledGaussianLoss {
 public:
  SampledGaussianLoss(const PrivacyEvent& event, Direction direction)
      : q_(event.sample_rate), sigma_(event.noise_multiplier), direction_(direction) {}

  /// The probability of a loss above t.
  double above(double t) const {
    const bool remove = direction_ == Direction::remove;
    if (!remove) t = -t;
    if (t <= std::log1p(-q_)) return remove ? 1 : 0;
    // The result at which log u is t.
    const double z = q_ == 1 ? t : std::log((std::expm1(t) + q_) / q_);
    const double x = 2 * z * sigma_ * sigma_;
    if (!remove) return std::erfc(-(x + 1) / (2 * M_SQRT2 * sigma_)) / 2;
    const double with = std::erfc((x - 1) / (2 * M_SQRT2 * sigma_));
    const double without = std::erfc((x + 1) / (2 * M_SQRT2 * sigma_));
    return (q_ * with + (1 - q_) * without) / 2;
  }

  /// The mean: the integral of density and loss over results, by the trapezoidal rule. See rdp.cpp.
  double mean() const {
    const double variance = sigma_ * sigma_;
    const double step = std::min(sigma_ / 2, variance / 3);
    const auto gaussian = [&](double x) { return std::exp(-x * x / (2 * variance)); };
    const bool remove = direction_ == Direction::remove;
    double sum = 0;
    for (double x = -9 * sigma_; x <= 1 + 9 * sigma_; x += step) {
      const double density = remove ? (1 - q_) * gaussian(x) + q_ * gaussian(x - 1) : -gaussian(x);
      const double t = (2 * x - 1) / (2 * variance);
      const double log_u = t > 600 ? std::log(q_) + t : std::log1p(q_ * std::expm1(t));
      sum += density * log_u;
    }
    return sum * step / (sigma_ * std::sqrt(2 * M_PI));
  }

 private:
  double q_;
  double sigma_;
  Direction direction_;
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
    TORCH_CHECK_NOT_IMPLEMENTED(event.sampling == Sampling::poisson || event.sample_rate == 1,
                                "the PRV accountant has no theorem for batches of a fixed size; "
                                "account for them by pld_epsilon "
                                "or rdp_epsilon");
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

ComposedLoss compose(const PrivacyLedger& ledger, const LossGrid& grid, Direction direction) {
  LossComposer composer(grid);
  double shift = 0;
  for (const auto& event : ledger.events()) {
    const auto steps = static_cast<double>(event.steps);
    shift += steps * discretise(SampledGaussianLoss(event, direction), grid, composer.mass());
    composer.add(steps);
  }
  return composer.composed(shift);
}

/// What `bounds_of` the composed loss says, the larger one of both directions. Without sampling one is the
/// other's mirror.
template <typename F>
PrivacyBounds worst(const PrivacyLedger& ledger, const LossGrid& grid, const F& bounds_of) {
  const PrivacyBounds remove = bounds_of(compose(ledger, grid, Direction::remove));
  const auto& events = ledger.events();
  const bool sampled = std::any_of(events.begin(), events.end(),
                                   [](const auto& event) { return event.sample_rate < 1; });
  if (!sampled) return remove;
  const PrivacyBounds add = bounds_of(compose(ledger, grid, Direction::add));
  return {std::max(remove.lower, add.lower), std::max(remove.estimate, add.estimate),
          std::max(remove.upper, add.upper)};
}

}  // namespace

PrivacyBounds prv_epsilon(const PrivacyLedger& ledger, double delta, PrvOptions options) {
  detail::check_delta(delta);
  check_positive("epsilon_error", options.epsilon_error);
  check_not_negative("delta_error", options.delta_error);
  const double delta_error = options.delta_error > 0 ? options.delta_error : delta / 1000;
  TORCH_CHECK_VALUE(delta_error < delta, "delta_error must be below delta (", delta, "), but is ",
                    delta_error);
  check_events(ledger);
  if (ledger.empty()) return {};
  const auto grid = grid_of(ledger, options.epsilon_error, delta_error);
  return worst(ledger, grid, [&](const ComposedLoss& loss) {
    PrivacyBounds bounds;
    bounds.lower = std::max(0.0, loss.epsilon_at(delta + delta_error) - options.epsilon_error);
    bounds.estimate = loss.epsilon_at(delta);
    bounds.upper = loss.epsilon_at(delta - delta_error) + options.epsilon_error;
    return bounds;
  });
}

PrivacyBounds prv_delta(const PrivacyLedger& ledger, double epsilon, PrvOptions options) {
  check_not_negative("epsilon", epsilon);
  check_positive("epsilon_error", options.epsilon_error);
  check_not_negative("delta_error", options.delta_error);
  const double delta_error = options.delta_error > 0 ? options.delta_error : 1e-10;
  check_events(ledger);
  if (ledger.empty()) return {};
  const auto grid = grid_of(ledger, options.epsilon_error, delta_error);
  return worst(ledger, grid, [&](const ComposedLoss& loss) {
    PrivacyBounds bounds;
    bounds.lower = std::max(0.0, loss.delta_at(epsilon + options.epsilon_error) - delta_error);
    bounds.estimate = loss.delta_at(epsilon);
    bounds.upper = std::min(1.0, loss.delta_at(epsilon - options.epsilon_error) + delta_error);
    return bounds;
  });
}

}  // namespace torchlore
