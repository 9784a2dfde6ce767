#pragma once

#include <string>

#include "torchlore/core/state_dict.hpp"

/// What the two ways to aggregate share: reading and clipping one client's update.
namespace torchlore::privacy {

/// What is left between a clipped norm and the bound, for the rounding of the norm itself: float64 sums of
/// up to 2^30 squares.
constexpr double kClipSlack = 0x1p-20;

/// @throws c10::TypeError for a tensor that is not floating; c10::ValueError without any element.
/// @return the number of elements.
int64_t check_model(const StateDict& like);

/// What differs from the model in the update, in words; empty if nothing does.
std::string difference(const StateDict& like, const StateDict& update);

/// Contiguous float32 or float64 tensors on the host.
StateDict on_host(const StateDict& update);

/// The L2 norm over all tensors of `on_host`; not finite if an element is not.
double norm_of(const StateDict& update);

/// What to multiply an update of this norm with, so that its norm is below the bound.
double clip_factor(double norm, double clip_norm);

/// sum += the nearest whole numbers to values × factor. @param sum int64, contiguous.
void accumulate(const at::Tensor& sum, const at::Tensor& values, double factor);

}  // namespace torchlore::privacy
