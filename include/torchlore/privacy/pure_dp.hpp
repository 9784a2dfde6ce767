#pragma once

#include "torchlore/privacy/privacy_ledger.hpp"

/// Pure differential privacy: an ε with δ = 0.
namespace torchlore {

/// The ε of everything in the ledger with δ = 0: the sum over all releases. A sampled one counts as
/// ln(1 + q (e^(1/b) - 1)), for either kind of sampling; b is its noise multiplier.
/// @return 0 for an empty ledger. Rounding aside, the smallest ε there is for equal releases.
/// @throws c10::NotImplementedError for Gaussian noise, which has no ε with δ = 0.
/// Source: Dwork, Roth (2014), The algorithmic foundations of differential privacy, theorems 3.6 and 3.16.
/// Balle, Barthe, Gaboardi (2018), arXiv:1807.01647, theorems 8 and 9.
double pure_epsilon(const PrivacyLedger& ledger);

/// The least scale of Laplace noise over L1 sensitivity with which one release is ε-private: 1 / ε.
/// @param epsilon above 0.
double laplace_noise_multiplier(double epsilon);

}  // namespace torchlore
