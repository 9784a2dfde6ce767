#pragma once

#include <cstdint>

#include "torchlore/privacy/calibrate_noise.hpp"
#include "torchlore/privacy/privacy_ledger.hpp"

namespace torchlore {

/// What a run may spend at most.
struct PrivacyBudget {
  double epsilon = 0;  ///< above 0
  double delta = 0;    ///< in (0, 1); below 1 / size of the data set to mean anything
};

/// The ε of everything in the ledger by an accountant: the least of what it and RDP prove. What RDP proves
/// where it is above 100. After very many steps, PRV's grid is chosen coarser than usual, so that it is done
/// within a second. Infinity if δ is so small that nothing is proved.
/// @param delta in (0, 1).
/// @throws c10::ValueError for a delta out of range; c10::NotImplementedError for events that the
///         accountant has no theorem for.
double spent_epsilon(const PrivacyLedger& ledger, double delta, Accounting accounting);

/// How often `event` can still happen after what the ledger holds, with ε not above the budget's.
/// @param event   its `steps` do not matter.
/// @param most    where the search ends.
/// @return 0 to `most`.
/// @throws c10::ValueError for a budget out of range; c10::NotImplementedError as `spent_epsilon`.
/// Complexity: about twice log2 of the result in calls of the accountant.
int64_t steps_within(const PrivacyBudget& budget, const PrivacyLedger& spent, PrivacyEvent event,
                     Accounting accounting, int64_t most = int64_t{1} << 40);

}  // namespace torchlore
