#include "torchlore/privacy/privacy_ledger.hpp"

#include <algorithm>
#include <limits>

#include "torchlore/core/error.hpp"

namespace torchlore {

PrivacyLedger::PrivacyLedger(const std::vector<PrivacyEvent>& events) {
  for (const auto& event : events) add(event);
}

PrivacyLedger& PrivacyLedger::add(const PrivacyEvent& event) {
  check_positive("noise_multiplier of a PrivacyEvent", event.noise_multiplier);
  TORCH_CHECK_VALUE(event.sample_rate > 0 && event.sample_rate <= 1,
                    "sample_rate of a PrivacyEvent must lie in (0, 1], but is ", event.sample_rate);
  check_count("steps of a PrivacyEvent", event.steps);
  TORCH_CHECK_VALUE(events_.empty() || events_.front().sampling == event.sampling,
                    "a PrivacyLedger cannot hold Poisson samples and batches of a fixed size "
                    "together: the former are "
                    "private among data sets with one example more or less, the latter among those "
                    "with one example "
                    "replaced; draw all batches in the same way");
  const auto same = [&](const PrivacyEvent& other) {
    return other.noise_multiplier == event.noise_multiplier &&
           other.sample_rate == event.sample_rate && other.noise == event.noise &&
           other.sampling == event.sampling;
  };
  const auto found = std::find_if(events_.begin(), events_.end(), same);
  if (found == events_.end()) {
    events_.push_back(event);
    return *this;
  }
  TORCH_CHECK_VALUE(found->steps <= std::numeric_limits<int64_t>::max() - event.steps,
                    "a PrivacyLedger cannot count ", found->steps, " and ", event.steps,
                    " more steps");
  found->steps += event.steps;
  return *this;
}

}  // namespace torchlore
