#include "torchlore/privacy/privacy_budget.hpp"

#include <algorithm>
#include <cmath>

#include "check_delta.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/privacy/pld.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

// Above it nothing is protected, and the grid of the others would be vast.
constexpr double kVast = 100;
// Points of a grid that is done within a second.
constexpr double kMostPoints = 1 << 21;

/// Where a fine grid would take long, a coarser one: its bound is looser, and a bound all the same.
double tight_epsilon(const PrivacyLedger& ledger, double delta, Accounting accounting,
                     double rough) {
  const double fine = std::clamp(rough / 100, 1e-4, 0.01);
  const double range = 2 * (rough + 4);
  if (accounting == Accounting::pld) {
    return pld_epsilon(ledger, delta, {.interval = std::max(fine / 10, range / kMostPoints)});
  }
  double steps = 0;
  for (const auto& event : ledger.events()) steps += static_cast<double>(event.steps);
  const double error =
      std::max(fine, range * std::sqrt(steps / 2 * std::log(12e3 / delta)) / kMostPoints);
  return error < rough ? prv_epsilon(ledger, delta, {.epsilon_error = error}).upper : rough;
}

bool is_within(const PrivacyBudget& budget, const PrivacyLedger& ledger, Accounting accounting) {
  const double rough = rdp_epsilon(ledger, budget.delta).value;
  if (rough <= budget.epsilon) return true;
  if (accounting == Accounting::rdp || rough > 10 * budget.epsilon + 10) return false;
  return spent_epsilon(ledger, budget.delta, accounting) <= budget.epsilon;
}

}  // namespace

double spent_epsilon(const PrivacyLedger& ledger, double delta, Accounting accounting) {
  const double rough = rdp_epsilon(ledger, delta).value;
  if (accounting == Accounting::rdp || ledger.empty() || rough == 0 || rough > kVast) return rough;
  return std::min(rough, tight_epsilon(ledger, delta, accounting, rough));
}

int64_t steps_within(const PrivacyBudget& budget, const PrivacyLedger& spent, PrivacyEvent event,
                     Accounting accounting, int64_t most) {
  detail::check_epsilon_delta("PrivacyBudget", budget.epsilon, budget.delta);
  check_count("most", most);
  const auto fits = [&](int64_t steps) {
    auto ledger = spent;
    event.steps = steps;
    ledger.add(event);
    return is_within(budget, ledger, accounting);
  };
  int64_t high = 1;
  while (high < most && fits(high)) high = std::min(2 * high, most);
  if (high == most && fits(high)) return most;
  int64_t low = high == 1 ? 0 : high / 2;  // fits
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace torchlore
