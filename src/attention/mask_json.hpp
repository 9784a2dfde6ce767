#pragma once

#include <string>

#include "torchlore/attention/mask.hpp"
#include "torchlore/core/state_dict.hpp"

namespace torchlore::detail {

/// The mask as JSON. Its tensors are added to `tensors`, as "mask/0" and so on. It must hold no
/// predicate.
std::string mask_to_json(const MaskSpec& spec, StateDict& tensors);

/// The mask that `mask_to_json` wrote.
/// @throws c10::ValueError saying what is wrong with the text, or with an argument in it.
MaskSpec mask_from_json(const std::string& text, const StateDict& tensors);

}  // namespace torchlore::detail
