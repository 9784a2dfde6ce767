#pragma once

#include "torchlore/privacy/privacy_ledger.hpp"

/// Privacy loss distributions: a tight upper bound for Gaussian and Laplace noise, sampled or not.
namespace torchlore {

/// Options of `pld_epsilon` and `pld_delta`.
struct PldOptions {
  /// Distance of the grid's points, in ε. Smaller is tighter and takes longer.
  double interval = 1e-3;
};

/// An ε for which what the ledger holds is (ε, δ)-differentially private. For Poisson samples it is the
/// worse of the two directions, an example more or less; for batches of fixed size it is for an example
/// replaced. It is never too small.
///
/// The trade-off curve δ(ε) of each event is met exactly at the points of a grid and lies above the truth
/// between them; the events are composed by the fast Fourier transform.
/// @param delta in (0, 1); infinity if δ is below what is lost to the end of the grid (about 1e-15).
/// Complexity: n log n for n = range of the loss / interval points.
/// @throws c10::ValueError for a value out of range, or if the grid would not fit in memory.
/// Source: Doroshenko et al. (2022), Connect the dots, arXiv:2207.04380. Zhu, Dong, Wang (2022),
/// arXiv:2106.08567, theorem 11.
double pld_epsilon(const PrivacyLedger& ledger, double delta, PldOptions options = {});

/// A δ for an ε; never too small. @param epsilon 0 or more. Throws as above.
double pld_delta(const PrivacyLedger& ledger, double epsilon, PldOptions options = {});

}  // namespace torchlore
