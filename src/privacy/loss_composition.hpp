#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace torchlore {

/// Points i * step of the privacy loss, for -points / 2 <= i < points / 2.
struct LossGrid {
  double step = 0;
  int64_t points = 0;  // a power of two

  /// The grid over [-range, range] at least.
  /// @throws c10::ValueError if it would not fit in memory; the text names the accountant, and the
  ///         option (with its value) that makes it smaller.
  static LossGrid covering(double range, double step, const char* accountant, const char* option,
                           double value);
  /// Where point i is kept: from 0 upwards, the negative ones after them, as a Fourier transform has it.
  size_t place(int64_t i) const { return static_cast<size_t>(i < 0 ? i + points : i); }
};

/// The distribution of the sum of the losses of all events.
struct ComposedLoss {
  double first = 0;
  double step = 0;
  std::vector<double> mass = {};  // at first + i * step
  double at_infinity = 0;

  double at(size_t i) const { return first + static_cast<double>(i) * step; }
  /// δ(ε) = E[max(0, 1 - e^(ε - loss))].
  double delta_at(double epsilon) const;
  /// The ε at which δ is reached; 0 if it is not, infinity if no ε is enough.
  double epsilon_at(double delta) const;
};

/// Adds up independent losses by the fast Fourier transform.
class LossComposer {
 public:
  explicit LossComposer(const LossGrid& grid);
  /// To be filled with the loss of one event, at the grid's places.
  std::vector<double>& mass() { return mass_; }
  /// What `mass()` holds happens so many times.
  void add(double steps);
  /// The sum of all, every point moved by `shift`.
  ComposedLoss composed(double shift);

 private:
  LossGrid grid_;
  std::vector<double> mass_;
  std::vector<std::complex<double>> spectrum_;
  std::vector<std::complex<double>> product_;
};

}  // namespace torchlore
