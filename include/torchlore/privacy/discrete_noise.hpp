#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include "torchlore/privacy/noise_source.hpp"

/// Whole numbers with exact distributions, for mechanisms of one's own. docs/discrete_noise.md says how.
namespace torchlore {

/// Whole numbers y with probability proportional to exp(-y^2 / (2 sigma^2)), exactly.
/// @param sizes  shape of the result.
/// @param sigma  in [0.25, 2^46]; used rounded up to 24 significant bits, or to a whole number where that
///               is closer.
/// @param source where the random bits come from. The numbers depend on it and on how many there are, not
///               on the number of threads or the instruction set.
/// @return int64, on the CPU.
/// @throws c10::ValueError if sigma is out of range.
/// @note O(elements): about 2e8 a second and thread from 4 to 2^43, else 4e6.
/// Source: Canonne, Kamath, Steinke (2020), arXiv:2004.00010.
at::Tensor discrete_gaussian(at::IntArrayRef sizes, double sigma, const NoiseSource& source = {});

/// Whole numbers y with probability proportional to exp(-|y| / scale), exactly; otherwise as
/// `discrete_gaussian`.
/// @param sizes  shape of the result.
/// @param scale  in [0.25, 2^46]; used rounded up as there.
/// @param source where the random bits come from.
/// @return int64, on the CPU.
/// @throws c10::ValueError if scale is out of range.
/// @note O(elements), about 1e7 a second and thread.
at::Tensor discrete_laplace(at::IntArrayRef sizes, double scale, const NoiseSource& source = {});

}  // namespace torchlore
