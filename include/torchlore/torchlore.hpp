#pragma once

// All public headers, written by cmake/umbrella.cmake. Include single headers where
// compile time counts.
// IWYU pragma: begin_exports

#include "torchlore/core/error.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/loss.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/scaled_step.hpp"
#include "torchlore/core/state_dict.hpp"
#include "torchlore/core/tensor_file.hpp"
#include "torchlore/gradient/accumulator.hpp"
#include "torchlore/gradient/clip_grad.hpp"
#include "torchlore/precision/autocast.hpp"
#include "torchlore/precision/loss_scaler.hpp"
