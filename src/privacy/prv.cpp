#include "torchlore/privacy/prv.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <complex>
#include <unsupported/Eigen/FFT>
#include <vector>

#include "torchlore/core/error.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

constexpr double kMostPoints = 1 << 26;  // 2 GiB of work space

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

/// The composed loss on a grid: mass[i] at first + i * step.
struct ComposedLoss {
  double first = 0;
  double step = 0;
  std::vector<double> mass = {};

  double at(size_t i) const { return first + static_cast<double>(i) * step; }
};

struct Grid {
  double step = 0;
  int64_t points = 0;  // a power of two; point i stands for i, or i - points in the upper half
};

int64_t total_steps(const PrivacyLedger& ledger) {
  int64_t sum = 0;
  for (const auto& event : ledger.events()) sum += event.steps;
  return sum;
}

/// Source: theorem 5.5 and section 5.1 of the paper.
Grid grid_of(const PrivacyLedger& ledger, double epsilon_error, double delta_error) {
  const auto steps = static_cast<double>(total_steps(ledger));
  double range = rdp_epsilon(ledger, delta_error / 4).value;
  for (auto event : ledger.events()) {
    event.steps = 1;
    range = std::max(range, rdp_epsilon(PrivacyLedger({event}), delta_error / (8 * steps)).value);
  }
  range = std::max(range, epsilon_error) + 3;
  const double step = epsilon_error / std::sqrt(steps / 2 * std::log(12 / delta_error));
  const double points = 2 * range / step;
  TORCH_CHECK_VALUE(points < kMostPoints, "the PRV accountant would need a grid of ", points,
                    " points for an epsilon_error of ", epsilon_error, "; allow ",
                    epsilon_error * points / kMostPoints, " or more");
  Grid grid{step, 2};
  while (static_cast<double>(grid.points) < points + 2) grid.points *= 2;
  return grid;
}

void check_events(const PrivacyLedger& ledger) {
  for (const auto& event : ledger.events()) {
    TORCH_CHECK_NOT_IMPLEMENTED(event.noise == Noise::gaussian,
                                "the PRV accountant knows the Gaussian mechanism only; account for "
                                "the Laplace mechanism by rdp_epsilon");
    TORCH_CHECK_NOT_IMPLEMENTED(
        event.sampling == Sampling::poisson || event.sample_rate == 1,
        "the PRV accountant has no theorem for batches of a fixed size; draw "
        "them by Poisson sampling");
  }
}

/// Puts a loss on the grid, and says by how much the points must be shifted to keep its mean.
double discretise(const SampledGaussianLoss& loss, const Grid& grid, std::vector<double>& mass) {
  const int64_t half = grid.points / 2;
  double above = loss.above((static_cast<double>(-half) - 0.5) * grid.step);
  double mean = 0;
  double all = 0;
  for (int64_t i = -half; i < half; ++i) {
    const double next = loss.above((static_cast<double>(i) + 0.5) * grid.step);
    const double here = above - next;
    above = next;
    mass[static_cast<size_t>(i < 0 ? i + grid.points : i)] = here;
    mean += here * static_cast<double>(i) * grid.step;
    all += here;
  }
  for (double& m : mass) m /= all;
  return loss.mean() - mean / all;
}

ComposedLoss compose(const PrivacyLedger& ledger, const Grid& grid) {
  using Complex = std::complex<double>;
  Eigen::FFT<double> fft;
  fft.SetFlag(Eigen::FFT<double>::HalfSpectrum);
  std::vector<double> mass(static_cast<size_t>(grid.points));
  std::vector<Complex> spectrum;
  std::vector<Complex> product(static_cast<size_t>(grid.points / 2 + 1), Complex(1));
  double shift = 0;
  for (const auto& event : ledger.events()) {
    const auto steps = static_cast<double>(event.steps);
    shift += steps * discretise(SampledGaussianLoss(event), grid, mass);
    fft.fwd(spectrum, mass);
    for (size_t i = 0; i < product.size(); ++i) product[i] *= std::pow(spectrum[i], steps);
  }
  fft.inv(mass, product, grid.points);
  std::rotate(mass.begin(), mass.begin() + grid.points / 2, mass.end());
  return {static_cast<double>(-grid.points / 2) * grid.step + shift, grid.step, std::move(mass)};
}

/// δ(ε) = E[max(0, 1 - e^(ε - loss))].
double delta_at(const ComposedLoss& loss, double epsilon) {
  double delta = 0;
  for (size_t i = loss.mass.size(); i-- > 0 && loss.at(i) > epsilon;) {
    delta -= loss.mass[i] * std::expm1(epsilon - loss.at(i));
  }
  return std::clamp(delta, 0.0, 1.0);
}

/// The ε at which δ is reached; 0 if it is not. Between two points of the grid δ(ε) = a - b e^ε.
double epsilon_at(const ComposedLoss& loss, double delta) {
  double above = 0;     // mass of larger losses
  double weighted = 0;  // the same, each times e^-loss
  for (size_t i = loss.mass.size(); i-- > 0 && loss.at(i) > 0;) {
    if (above - weighted * std::exp(loss.at(i)) >= delta) break;
    above += loss.mass[i];
    weighted += loss.mass[i] * std::exp(-loss.at(i));
  }
  return above - weighted > delta ? std::log((above - delta) / weighted) : 0;
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
  bounds.lower = std::max(0.0, epsilon_at(loss, delta + delta_error) - options.epsilon_error);
  bounds.estimate = epsilon_at(loss, delta);
  bounds.upper = epsilon_at(loss, delta - delta_error) + options.epsilon_error;
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
  bounds.lower = std::max(0.0, delta_at(loss, epsilon + options.epsilon_error) - delta_error);
  bounds.estimate = delta_at(loss, epsilon);
  bounds.upper = std::min(1.0, delta_at(loss, epsilon - options.epsilon_error) + delta_error);
  return bounds;
}

}  // namespace torchlore
