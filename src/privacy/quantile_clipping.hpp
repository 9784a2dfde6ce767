#pragma once

#include "torchlore/privacy/quantile_clipping.hpp"

namespace torchlore::privacy {

/// The names by which an error speaks of the options.
struct QuantileNames {
  const char* options = nullptr;  ///< of QuantileClipping
  const char* norm = nullptr;     ///< of the norm to begin with
};

/// Throws c10::ValueError for an option out of range. @param adaptive with its count_noise set.
void check_quantile(const QuantileClipping& adaptive, double norm, double noise_multiplier,
                    const QuantileNames& names);

/// What the gradients' noise multiplier is raised to, since the count spends its part.
double raised_noise(const QuantileClipping& adaptive, double noise_multiplier);

/// The next norm. @param centred the noisy count of those not clipped less half of all.
double next_norm(const QuantileClipping& adaptive, double norm, double centred, double expected);

}  // namespace torchlore::privacy
