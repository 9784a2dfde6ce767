#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include "torchlore/privacy/noise_source.hpp"

namespace torchlore {

/// Adds Gaussian noise in place to each element of each tensor, as to the clipped sums of gradients.
///
/// With a secure source the noise is a *discrete* Gaussian on a grid of 2^-43 to 2^-42 of the
/// standard deviation, drawn without rounding error, and the values are rounded to that grid first:
/// what comes out is a function of a whole number, and its low bits tell nothing (docs/discrete_noise.md).
/// The standard deviation is raised by 2^-16 of itself, which pays for the rounding as long as
/// noise_multiplier × sqrt(elements) is below 2^26: with accounting for `stddev` there is nothing
/// more to do.
///
/// With `fast_not_secure` it is a float32 normal number, scaled. The result depends on the source
/// and the tensors' sizes, not on the number of threads.
/// @param tensors any shapes and strides; float32 or float64; float16 and bfloat16 are rounded once
///                from float32. Off the CPU the noise is drawn and added on the host, and copied.
/// @param stddev  of the noise, 0 or above; above 0 it lies in [1e-200, 1e200]. 0 adds nothing, and
///                protects nothing.
/// @param source  where the random bits come from.
/// @throws c10::ValueError if stddev is out of range, a tensor is undefined (the gradient of an unused
///         parameter must be zeros: it needs noise too), shares memory with itself or another of the
///         list, or holds a value that is not finite; c10::TypeError for another dtype. Nothing was
///         changed then.
/// @note O(elements), on LibTorch's threads. Host syncs: one per tensor on an accelerator. Not recorded
///       by autograd.
void add_gaussian_noise_(at::TensorList tensors, double stddev, const NoiseSource& source = {});

}  // namespace torchlore
