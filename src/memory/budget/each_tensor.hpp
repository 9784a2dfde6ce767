#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace torchlore::budget {

/// Calls `f(tensor, element)` for each defined tensor of an argument or result; `element` is the
/// place in a list, -1 for a tensor by itself.
template <typename F>
void each_tensor(const c10::IValue& value, const F& f) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) f(value.toTensor(), int32_t{-1});
  } else if (value.isList()) {
    int32_t element = 0;
    for (const c10::IValue& entry : value.toListRef()) {
      if (entry.isTensor() && entry.toTensor().defined()) f(entry.toTensor(), element);
      ++element;
    }
  }
}

}  // namespace torchlore::budget
