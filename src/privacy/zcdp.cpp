#include "torchlore/privacy/zcdp.hpp"

#include <algorithm>
#include <cmath>

#include "bisect.hpp"
#include "check_delta.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/pure_dp.hpp"

namespace torchlore {
namespace {

/// log of the δ that order 1 + above proves.
double log_delta(double rho, double epsilon, double above) {
  const double log_ratio = -std::log1p(1 / above);  // of 1 - 1 / order
  return above * ((1 + above) * rho - epsilon) - std::log(above) + (1 + above) * log_ratio;
}

/// Its derivative by the order, which rises.
double slope(double rho, double epsilon, double above) {
  return (1 + 2 * above) * rho - epsilon - std::log1p(1 / above);
}

}  // namespace

double zcdp_rho(const PrivacyLedger& ledger) {
  double rho = 0;
  for (const auto& event : ledger.events()) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        event.noise == Noise::laplace || event.sample_rate == 1,
        "zero-concentrated privacy has no gain from sampling (a sample_rate is ", event.sample_rate,
        "); take prv_epsilon or rdp_epsilon");
    double one = 1 / event.noise_multiplier;
    if (event.noise == Noise::laplace) {
      auto single = event;
      single.steps = 1;
      one = pure_epsilon(PrivacyLedger({single}));
    }
    rho += static_cast<double>(event.steps) * one * one / 2;
  }
  return rho;
}

double zcdp_delta(double rho, double epsilon) {
  check_not_negative("rho", rho);
  check_not_negative("epsilon", epsilon);
  if (rho == 0) return 0;
  // In the inverse of order - 1, where the best order is the smallest at which the slope is not above 0.
  const double inverse =
      first_true([&](double y) { return y > 0 && slope(rho, epsilon, 1 / y) <= 0; });
  // Any order proves something, should the search have ended.
  const double above = 1 / std::min(inverse, 1e9);
  return std::min(1.0, std::exp(log_delta(rho, epsilon, above)));
}

double zcdp_epsilon(double rho, double delta) {
  check_not_negative("rho", rho);
  detail::check_delta(delta);
  return first_true([&](double epsilon) { return zcdp_delta(rho, epsilon) <= delta; });
}

double zcdp_budget(double epsilon, double delta) {
  check_positive("epsilon", epsilon);
  detail::check_delta(delta);
  // The smallest 1 / rho that is enough.
  return 1 / first_true([&](double inverse) {
           return inverse > 0 && zcdp_delta(1 / inverse, epsilon) <= delta;
         });
}

}  // namespace torchlore
