#pragma once

#include "torchlore/privacy/privacy_ledger.hpp"

/// Zero-concentrated differential privacy: one number ρ that adds up, for releases without sampling.
namespace torchlore {

/// The ρ of everything in the ledger: 1 / (2 sigma^2) for each release with Gaussian noise, ε^2 / 2 for
/// one with Laplace noise of pure ε (see `pure_epsilon`).
/// @return 0 for an empty ledger.
/// @throws c10::NotImplementedError for Gaussian noise on a sample: ρ has no gain from sampling.
/// Source: Bun, Steinke (2016), arXiv:1605.02065, propositions 1.4 and 1.6, lemma 1.8.
double zcdp_rho(const PrivacyLedger& ledger);

/// The smallest δ that ρ proves for an ε; at most 1. The same holds for discrete Gaussian noise.
/// @param rho 0 or more. @param epsilon 0 or more.
/// Source: Canonne, Kamath, Steinke (2020), arXiv:2004.00010, corollary 13, minimised over the order.
double zcdp_delta(double rho, double epsilon);

/// The smallest ε that ρ proves for a δ in (0, 1); rounded up in the last digits. It is below the usual
/// ρ + 2 sqrt(ρ ln(1/δ)).
double zcdp_epsilon(double rho, double delta);

/// The largest ρ that proves (ε, δ); rounded down in the last digits. Share it out among releases:
/// a noise multiplier is sqrt(1 / (2 ρ)). @param epsilon above 0. @param delta in (0, 1).
double zcdp_budget(double epsilon, double delta);

}  // namespace torchlore
