#include "torchlore/privacy/gaussian_mechanism.hpp"

#include <cmath>

#include "bisect.hpp"
#include "check_delta.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

/// log of the standard normal's distribution function, with all digits also far to the left.
double log_normal_cdf(double x) {
  if (x > -30) return std::log(std::erfc(-x / M_SQRT2) / 2);
  // The asymptotic series; its fourth term is below 1e-9 of the whole here.
  const double y = 1 / (x * x);
  return -x * x / 2 - std::log(-x * std::sqrt(2 * M_PI)) +
         std::log1p(-y * (1 - 3 * y * (1 - 5 * y * (1 - 7 * y))));
}

}  // namespace

double gaussian_delta(double noise_multiplier, double epsilon) {
  check_positive("noise_multiplier", noise_multiplier);
  check_not_negative("epsilon", epsilon);
  const double half = 1 / (2 * noise_multiplier);
  const double log_a = log_normal_cdf(half - epsilon * noise_multiplier);
  const double log_b = epsilon + log_normal_cdf(-half - epsilon * noise_multiplier);
  return log_b >= log_a ? 0 : std::exp(log_a) * -std::expm1(log_b - log_a);
}

double gaussian_epsilon(double noise_multiplier, double delta) {
  detail::check_delta(delta);
  return first_true(
      [&](double epsilon) { return gaussian_delta(noise_multiplier, epsilon) <= delta; });
}

double gaussian_noise_multiplier(double epsilon, double delta) {
  check_positive("epsilon", epsilon);
  detail::check_delta(delta);
  return first_true(
      [&](double sigma) { return sigma > 0 && gaussian_delta(sigma, epsilon) <= delta; });
}

double gdp_epsilon(double noise_multiplier, double sample_rate, double steps, double delta) {
  check_positive("noise_multiplier", noise_multiplier);
  check_in_range("sample_rate", sample_rate, 0, 1);
  check_positive("steps", steps);
  const double variance = noise_multiplier * noise_multiplier;
  const double mu = sample_rate == 1 ? std::sqrt(steps) / noise_multiplier
                                     : sample_rate * std::sqrt(steps * std::expm1(1 / variance));
  return gaussian_epsilon(1 / mu, delta);
}

}  // namespace torchlore
