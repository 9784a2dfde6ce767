#pragma once

// All public headers, written by cmake/umbrella.cmake. Include single headers where
// compile time counts.
// IWYU pragma: begin_exports

#include "torchlore/core/batch.hpp"
#include "torchlore/core/device.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/loss.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/core/optimizer_state.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/core/philox.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/rng.hpp"
#include "torchlore/core/run_state.hpp"
#include "torchlore/core/scaled_step.hpp"
#include "torchlore/core/state_dict.hpp"
#include "torchlore/core/step_result.hpp"
#include "torchlore/core/tensor_file.hpp"
#include "torchlore/gradient/accumulator.hpp"
#include "torchlore/gradient/clip.hpp"
#include "torchlore/gradient/clip_grad.hpp"
#include "torchlore/optimizer/fused_adagrad.hpp"
#include "torchlore/optimizer/fused_adam.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/optimizer/fused_sgd.hpp"
#include "torchlore/precision/autocast.hpp"
#include "torchlore/precision/loss_scaler.hpp"
#include "torchlore/precision/precision.hpp"
#include "torchlore/step.hpp"
