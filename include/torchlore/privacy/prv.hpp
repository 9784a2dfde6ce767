#pragma once

#include "torchlore/privacy/privacy_ledger.hpp"

/// Numerical composition of privacy loss random variables: the tight accountant, with proven bounds on
/// both sides.
namespace torchlore {

/// What is known of an ε or δ: the truth lies between the bounds.
struct PrivacyBounds {
  double lower = 0;     ///< no smaller value is true
  double estimate = 0;  ///< the best guess
  double upper = 0;     ///< a guarantee: report this one
};

/// Options of `prv_epsilon` and `prv_delta`.
struct PrvOptions {
  /// Half the distance of the bounds in ε. Smaller takes longer: time grows as its inverse.
  double epsilon_error = 0.01;
  /// The same in δ; 0 stands for a thousandth of the δ asked about.
  double delta_error = 0;
};

/// Bounds of the smallest ε such that what the ledger holds is (ε, δ)-differentially private, for
/// neighbours of which one has an example more or less: the worse of the two directions, of which
/// neither is the worse one always (Lebeda et al. 2024, arXiv:2405.20769).
///
/// The privacy loss of each event is put on a grid, by its own distribution function, with its mean kept,
/// and composed by the fast Fourier transform.
/// @param delta in (0, 1).
/// Complexity: n log n for n = L sqrt(steps) / epsilon_error grid points, L the range of the loss.
/// @throws c10::ValueError for a value out of range, or if the grid would not fit in memory (the text
///         says which error it would take); c10::NotImplementedError for events that the accountant
///         has no theorem for (the Laplace mechanism, fixed-size sampling).
/// Source: Gopi, Lee, Wutschitz (2021), arXiv:2106.02848.
PrivacyBounds prv_epsilon(const PrivacyLedger& ledger, double delta, PrvOptions options = {});

/// Bounds of the smallest δ for an ε. With `delta_error` 0 that is 1e-10. Throws as above.
/// @param epsilon 0 or more.
PrivacyBounds prv_delta(const PrivacyLedger& ledger, double epsilon, PrvOptions options = {});

}  // namespace torchlore
