#pragma once

#include <cstdint>

#include "torchlore/privacy/privacy_ledger.hpp"

namespace torchlore {

/// How ε is computed.
enum class Accounting : uint8_t {
  rdp,  ///< `rdp_epsilon`: an upper bound, at once
  prv,  ///< the upper bound of `prv_epsilon`: tighter, milliseconds; Poisson sampling only
  pld,  ///< `pld_epsilon`: as tight, for batches of a fixed size too
};

/// What a run may spend, and how long it is.
struct PrivacyTarget {
  double epsilon = 0;      ///< above 0
  double delta = 0;        ///< in (0, 1); below 1 / size of the data set to mean anything
  double sample_rate = 1;  ///< expected batch over size of the data set, in (0, 1]
  int64_t steps = 1;       ///< optimizer steps, 1 or more
  Accounting accounting = Accounting::prv;  ///< see Accounting
  Sampling sampling = Sampling::poisson;    ///< how batches are drawn
};

/// The least noise multiplier whose ε is not above the target, to a relative 1e-3; the ε of the
/// result was computed and is not above. It is a multiple of the sensitivity: for batches of a fixed size
/// that is twice the norm that examples are clipped to.
/// @throws c10::ValueError for a value out of range, or if no noise is enough (a target below
///         what the accountant can prove); c10::NotImplementedError for PRV with batches of a fixed
///         size.
/// Complexity: about 20 calls of the accountant.
double calibrate_noise(const PrivacyTarget& target);

}  // namespace torchlore
