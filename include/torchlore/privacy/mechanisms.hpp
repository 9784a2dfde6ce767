#pragma once

#include <ATen/core/Tensor.h>

#include "torchlore/privacy/noise_source.hpp"

/// A vector in, a private vector out. The norm of the sensitivity is in its name: the Gaussian
/// mechanism takes the L2, the Laplace mechanism the L1 distance that one person's data can make.
namespace torchlore {

/// Options of `gaussian_mechanism`; all three must be given.
struct GaussianMechanismOptions {
  /// The largest L2 distance between the values of neighbouring data sets, known without looking at
  /// the data; above 0.
  double l2_sensitivity = 0;
  double epsilon = 0;  ///< above 0
  double delta = 0;    ///< in (0, 1); well below 1 / number of people
};

/// Adds Gaussian noise with the least standard deviation that makes one release (ε, δ)-private:
/// `gaussian_noise_multiplier(epsilon, delta)` × sensitivity. (sensitivity / ε, as one often sees it, is
/// neither ε-private nor, at δ = 1e-5, anywhere near.)
/// @param values  float32 or float64 (float16 and bfloat16 are rounded once more), any shape and
///                device; not modified.
/// @param options see GaussianMechanismOptions.
/// @param source  where the random bits come from.
/// @return a new tensor like `values`, detached. A secure source draws as `add_gaussian_noise_` does.
/// @throws c10::ValueError for a value out of range, values that are not finite, or noise multiplier ×
///         sqrt(elements) of 2^26 and more; c10::TypeError for another dtype.
/// @note O(elements). Host syncs: 1 on an accelerator.
at::Tensor gaussian_mechanism(const at::Tensor& values, const GaussianMechanismOptions& options,
                              const NoiseSource& source = {});

/// Options of `laplace_mechanism`; both must be given.
struct LaplaceMechanismOptions {
  /// The largest L1 distance between the values of neighbouring data sets; above 0. Vectors of d
  /// values within an L2 ball of radius C lie up to 2 C sqrt(d) apart, C sqrt(d) from the origin.
  double l1_sensitivity = 0;
  double epsilon = 0;  ///< above 0
};

/// Adds Laplace noise of scale sensitivity / ε: one release is ε-private, with δ = 0.
///
/// The noise is a discrete Laplace number on a grid of 2^-43 to 2^-42 of the scale, drawn without
/// rounding error for either kind of source, and its scale is raised by 2^-16 of itself, which pays for
/// rounding the values to the grid (docs/discrete_noise.md).
/// @param values  as of `gaussian_mechanism`.
/// @param options see LaplaceMechanismOptions.
/// @param source  where the random bits come from.
/// @return a new tensor like `values`, detached.
/// @throws c10::ValueError for a value out of range, values that are not finite, or elements / ε of 2^26
///         and more; c10::TypeError for another dtype.
/// @note O(elements), about 10^7 a second and thread. Host syncs: 1 on an accelerator.
at::Tensor laplace_mechanism(const at::Tensor& values, const LaplaceMechanismOptions& options,
                             const NoiseSource& source = {});

}  // namespace torchlore
