#include "torchlore/privacy/pure_dp.hpp"

#include <cmath>

#include "torchlore/core/error.hpp"

namespace torchlore {

double pure_epsilon(const PrivacyLedger& ledger) {
  double sum = 0;
  for (const auto& event : ledger.events()) {
    TORCH_CHECK_NOT_IMPLEMENTED(event.noise == Noise::laplace,
                                "Gaussian noise has no epsilon with delta 0; take prv_epsilon, or "
                                "zcdp_rho without sampling");
    const double one = 1 / event.noise_multiplier;
    const bool all = event.sample_rate == 1;
    sum += static_cast<double>(event.steps) *
           (all ? one : std::log1p(event.sample_rate * std::expm1(one)));
  }
  return sum;
}

double laplace_noise_multiplier(double epsilon) {
  check_positive("epsilon", epsilon);
  return 1 / epsilon;
}

}  // namespace torchlore
