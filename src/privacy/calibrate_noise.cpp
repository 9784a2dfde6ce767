#include "torchlore/privacy/calibrate_noise.hpp"

#include <algorithm>
#include <cmath>

#include "bisect.hpp"
#include "check_delta.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/pld.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

double epsilon_of(const PrivacyLedger& ledger, const PrivacyTarget& target) {
  // What RDP proves is enough wherever it is small enough; the grid of the other would be vast where
  // there is hardly any noise.
  const double rough = rdp_epsilon(ledger, target.delta).value;
  if (target.accounting == Accounting::rdp || rough <= target.epsilon) return rough;
  if (rough > 10 * target.epsilon + 10) return rough;
  if (target.accounting == Accounting::pld) {
    return pld_epsilon(ledger, target.delta, {.interval = std::min(1e-3, target.epsilon / 1000)});
  }
  return prv_epsilon(ledger, target.delta, {.epsilon_error = std::min(0.01, target.epsilon / 100)})
      .upper;
}

}  // namespace

double calibrate_noise(const PrivacyTarget& target) {
  detail::check_epsilon_delta("PrivacyTarget", target.epsilon, target.delta);
  TORCH_CHECK_NOT_IMPLEMENTED(
      target.accounting != Accounting::prv || target.sampling == Sampling::poisson,
      "the PRV accountant has no theorem for batches of a fixed size; set accounting to "
      "Accounting::pld");
  const auto is_private = [&](double sigma) {
    if (sigma <= 0) return false;
    PrivacyLedger ledger;
    ledger.add({.noise_multiplier = sigma,
                .sample_rate = target.sample_rate,
                .steps = target.steps,
                .sampling = target.sampling});
    return epsilon_of(ledger, target) <= target.epsilon;
  };
  const double sigma = first_true(is_private, 1e-3);
  TORCH_CHECK_VALUE(std::isfinite(sigma), "no noise multiplier up to 1e9 gives epsilon ",
                    target.epsilon, " at delta ", target.delta, " after ", target.steps,
                    " steps; allow more, or make fewer steps");
  return sigma;
}

}  // namespace torchlore
