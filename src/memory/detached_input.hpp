#pragma once

#include <ATen/core/Tensor.h>

namespace torchlore::memory {

/// A tensor with the values of `saved`, cut off from the graph, but as if it had one where
/// `requires_grad` and not `leaf`, so that in-place ops are allowed and forbidden alike.
at::Tensor detached_input(const at::Tensor& saved, bool requires_grad, bool leaf);

}  // namespace torchlore::memory
