#include "torchlore/privacy/pld.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check_delta.hpp"
#include "loss_composition.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// The grid ends where this δ is certain.
constexpr double kEndDelta = 1e-15;

/// Neighbours: with one example less, with one more, or with one replaced.
enum class Direction : uint8_t { remove, add, replace };

/// What dominates batches of fixed size is, for ε from 0 on, what dominates Poisson samples of an example
/// less, and below 0 that of an example more (Zhu, Dong, Wang 2022, theorem 11).
Direction part(Direction direction, double epsilon) {
  if (direction != Direction::replace) return direction;
  return epsilon >= 0 ? Direction::remove : Direction::add;
}

/// The results of one event without and with the example, on a line: noise around 0, and a mixture of
/// noise around 0 and around 1.
class Mechanism {
 public:
  explicit Mechanism(const PrivacyEvent& event)
      : gaussian_(event.noise == Noise::gaussian),
        scale_(event.noise_multiplier),
        q_(event.sample_rate) {}

  /// The smallest δ of the direction for an ε of either sign.
  double delta(Direction of, double epsilon) const {
    const auto direction = part(of, epsilon);
    const double x = boundary(direction, epsilon);
    const double b = direction == Direction::remove ? above(x) : below_with(x);
    return std::clamp(likely(direction, x) - std::exp(epsilon) * b, 0.0, 1.0);
  }
  /// The probability of a loss above ε.
  double loss_above(Direction of, double epsilon) const {
    const auto direction = part(of, epsilon);
    return likely(direction, boundary(direction, epsilon));
  }

 private:
  /// The loss of a result x is ± log(1 - q + q e^t(x)), t rising with x: beyond this x it is above ε.
  double boundary(Direction direction, double epsilon) const {
    const double ratio = std::expm1(direction == Direction::remove ? epsilon : -epsilon) + q_;
    return ratio > 0 ? result_at(std::log(ratio / q_)) : -kInfinity;
  }
  double likely(Direction direction, double x) const {
    return direction == Direction::remove ? above_with(x) : below(x);
  }
  /// Where the log ratio of the noise around 1 and around 0 is t.
  double result_at(double t) const {
    if (gaussian_) return t * scale_ * scale_ + 0.5;
    if (t >= 1 / scale_) return kInfinity;
    return t < -1 / scale_ ? -kInfinity : (t * scale_ + 1) / 2;
  }
  double above(double x) const {
    if (gaussian_) return std::erfc(x / (M_SQRT2 * scale_)) / 2;
    return x > 0 ? std::exp(-x / scale_) / 2 : 1 - std::exp(x / scale_) / 2;
  }
  double below(double x) const { return above(-x); }
  double above_with(double x) const { return (1 - q_) * above(x) + q_ * above(x - 1); }
  double below_with(double x) const { return (1 - q_) * below(x) + q_ * below(x - 1); }

  bool gaussian_;
  double scale_;
  double q_;
};

/// Fills the grid with a loss whose δ(ε) meets the mechanism's at the points and is linear in e^ε between
/// them, and so nowhere below, since the true one is convex. Returns the mass at infinity.
double connect_dots(const Mechanism& mechanism, Direction direction, const LossGrid& grid,
                    std::vector<double>& mass) {
  const int64_t half = grid.points / 2;
  const double up = std::expm1(grid.step);
  const double down = std::expm1(-grid.step);
  const auto delta_of = [&](int64_t i) {
    return mechanism.delta(direction, static_cast<double>(i) * grid.step);
  };
  // Losses that hardly occur are raised to the first that may: what rounding would leave at the points
  // below could come back at the other end of the transform.
  int64_t first = -half;
  const auto is_certain = [&](int64_t i) {
    return mechanism.loss_above(direction, static_cast<double>(i) * grid.step) > 1 - 1e-12;
  };
  while (first + 1 < half && is_certain(first + 1)) ++first;
  std::fill(mass.begin(), mass.end(), 0.0);
  double before = 1;
  double here = delta_of(first);
  for (int64_t i = first; i < half; ++i) {
    const double next = i + 1 < half ? delta_of(i + 1) : here;
    const double from_below = i == first ? before - here : (here - before) / down;
    mass[grid.place(i)] = std::max(0.0, from_below + (next - here) / up);
    before = here;
    here = next;
  }
  return here;
}

/// A bound for what the sum of the losses has beyond the grid, where the transform would lose it:
/// Chernoff's, with the best of some tilts below the one that is best for the end of the grid.
class BeyondGrid {
 public:
  BeyondGrid(const LossGrid& grid, double highest_tilt) : grid_(grid) {
    const double end = static_cast<double>(grid.points / 2 - 1) * grid.step;
    for (double tilt = highest_tilt; tilt > highest_tilt / 40; tilt /= 2) {
      bounds_.push_back({tilt, -tilt * end});
    }
  }

  void add(const std::vector<double>& mass, double steps) {
    const int64_t half = grid_.points / 2;
    for (auto& [tilt, log_bound] : bounds_) {
      double sum = 0;
      for (int64_t i = -half; i < half; ++i) {
        const double m = mass[grid_.place(i)];
        if (m > 0) sum += m * std::exp(tilt * static_cast<double>(i) * grid_.step);
      }
      log_bound += steps * std::log(sum);
    }
  }
  double bound() const {
    double lowest = 0;
    for (const auto& bound : bounds_) lowest = std::min(lowest, bound.log_bound);
    return std::exp(lowest);
  }

 private:
  struct Bound {
    double tilt;
    double log_bound;
  };
  LossGrid grid_;
  std::vector<Bound> bounds_;
};

/// The ledger as the RDP accountant can bound it: without the gain of sampling where it has no theorem.
PrivacyLedger bounded(const PrivacyLedger& ledger) {
  PrivacyLedger all;
  for (auto event : ledger.events()) {
    if (event.noise == Noise::laplace) event.sample_rate = 1;
    all.add(event);
  }
  return all;
}

ComposedLoss compose(const PrivacyLedger& ledger, Direction direction, PldOptions options) {
  const auto end = rdp_epsilon(bounded(ledger), kEndDelta);
  const auto grid = LossGrid::covering(end.value + 3, options.interval, "PLD accountant",
                                       "interval", options.interval);
  LossComposer composer(grid);
  BeyondGrid beyond(grid, end.order - 1);
  double log_finite = 0;
  for (const auto& event : ledger.events()) {
    const auto steps = static_cast<double>(event.steps);
    const double infinite = connect_dots(Mechanism(event), direction, grid, composer.mass());
    beyond.add(composer.mass(), steps);
    log_finite += steps * std::log1p(-infinite);
    composer.add(steps);
  }
  auto loss = composer.composed(0);
  for (double& m : loss.mass) m = std::max(m, 0.0);  // rounding
  loss.at_infinity = -std::expm1(log_finite) + beyond.bound();
  return loss;
}

/// The largest of what `value_of` says about the composed loss, over all directions of neighbours.
template <typename F>
double worst(const PrivacyLedger& ledger, PldOptions options, const F& value_of) {
  check_positive("interval of PldOptions", options.interval);
  if (ledger.empty()) return 0;
  if (ledger.events().front().sampling == Sampling::fixed_size) {
    return value_of(compose(ledger, Direction::replace, options));
  }
  return std::max(value_of(compose(ledger, Direction::remove, options)),
                  value_of(compose(ledger, Direction::add, options)));
}

}  // namespace

double pld_epsilon(const PrivacyLedger& ledger, double delta, PldOptions options) {
  detail::check_delta(delta);
  return worst(ledger, options, [&](const ComposedLoss& loss) { return loss.epsilon_at(delta); });
}

double pld_delta(const PrivacyLedger& ledger, double epsilon, PldOptions options) {
  check_not_negative("epsilon", epsilon);
  return worst(ledger, options, [&](const ComposedLoss& loss) { return loss.delta_at(epsilon); });
}

}  // namespace torchlore
