#pragma once

namespace torchlore {

/// A clipping norm that follows a quantile of the norms, which is itself private.
///
/// After each release the norm C becomes C · e^(-rate (b - quantile)), or C - rate (b - quantile), where b is
/// the noisy share of the examples (or clients) whose gradient (or update) was no longer than C. What the
/// count spends comes out of the same noise multiplier: the noise of the gradients is raised to
/// (z^-2 - (2 count_noise)^-2)^(-1/2).
/// Source: Andrew, Thakkar, McMahan, Ramaswamy (2021), arXiv:1905.03871.
struct QuantileClipping {
  double quantile = 0.5;  ///< the share to be left alone, in [0, 1]
  double rate = 0.2;      ///< how fast the norm moves, above 0
  /// By a factor, which finds a norm of any size; else by a difference, for norms whose size is known.
  bool geometric = true;
  /// Standard deviation of the count's noise; 0: a twentieth of the expected number.
  double count_noise = 0;
  double least = 1e-6;  ///< the norm stays above
  double most = 1e6;    ///< and below
};

}  // namespace torchlore
