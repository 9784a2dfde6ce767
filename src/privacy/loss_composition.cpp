#include "loss_composition.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <unsupported/Eigen/FFT>

#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

constexpr double kMostPoints = 1 << 26;  // 2 GiB of work space

Eigen::FFT<double> make_fft() {
  Eigen::FFT<double> fft;
  fft.SetFlag(Eigen::FFT<double>::HalfSpectrum);
  return fft;
}

}  // namespace

LossGrid LossGrid::covering(double range, double step, const char* accountant, const char* option,
                            double value) {
  const double points = 2 * range / step;
  TORCH_CHECK_VALUE(points < kMostPoints, "the ", accountant, " would need a grid of ", points,
                    " points for an ", option, " of ", value, "; allow ",
                    value * points / kMostPoints, " or more");
  LossGrid grid{step, 2};
  while (static_cast<double>(grid.points) < points + 2) grid.points *= 2;
  return grid;
}

double ComposedLoss::delta_at(double epsilon) const {
  double delta = at_infinity;
  for (size_t i = mass.size(); i-- > 0 && at(i) > epsilon;) {
    delta -= mass[i] * std::expm1(epsilon - at(i));
  }
  return std::clamp(delta, 0.0, 1.0);
}

double ComposedLoss::epsilon_at(double delta) const {
  if (at_infinity >= delta) return std::numeric_limits<double>::infinity();
  // Between two points δ(ε) = above - weighted * e^ε.
  double above = at_infinity;  // mass of larger losses
  double weighted = 0;         // the same, each times e^-loss
  for (size_t i = mass.size(); i-- > 0 && at(i) > 0;) {
    if (above - weighted * std::exp(at(i)) >= delta) break;
    above += mass[i];
    weighted += mass[i] * std::exp(-at(i));
  }
  return above - weighted > delta ? std::log((above - delta) / weighted) : 0;
}

LossComposer::LossComposer(const LossGrid& grid)
    : grid_(grid),
      mass_(static_cast<size_t>(grid.points)),
      product_(static_cast<size_t>(grid.points / 2 + 1), 1.0) {}

void LossComposer::add(double steps) {
  make_fft().fwd(spectrum_, mass_);
  for (size_t i = 0; i < product_.size(); ++i) product_[i] *= std::pow(spectrum_[i], steps);
}

ComposedLoss LossComposer::composed(double shift) {
  ComposedLoss loss{static_cast<double>(-grid_.points / 2) * grid_.step + shift, grid_.step, mass_};
  make_fft().inv(loss.mass, product_, grid_.points);
  std::rotate(loss.mass.begin(), loss.mass.begin() + grid_.points / 2, loss.mass.end());
  return loss;
}

}  // namespace torchlore
