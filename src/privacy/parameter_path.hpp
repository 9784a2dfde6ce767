#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "torchlore/intercept/tape.hpp"

/// From where an op sees a parameter back to the parameter: through views, transposes, slices and casts.
namespace torchlore::detail {

/// The views that a parameter passes, from the parameter on, each with the output that is followed.
using ParameterPath = std::vector<TapeValue>;

/// The path to an input of an op. The input is a parameter of the tape.
ParameterPath path_to(const Tape& tape, const TapeUse& use);

/// Whether the adjoint of every view on the path is known.
bool is_known(const Tape& tape, const ParameterPath& path);

/// Whether the adjoint leaves norms as they are: no element is used twice.
bool keeps_norms(const Tape& tape, const ParameterPath& path);

/// The adjoint: gradients [B, *shape behind the path] → [B, *shape of the parameter].
at::Tensor back_through(const Tape& tape, const ParameterPath& path, at::Tensor gradients);

}  // namespace torchlore::detail
