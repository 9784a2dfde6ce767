#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace torchlore::attention {

/// An unset tensor [B, H, n, dim] with tokens outside of heads in memory if they are so in `order`: a
/// model that made its heads by views gets its tokens back without a copy.
inline at::Tensor empty_as(const at::Tensor& order, int64_t dim) {
  const auto batch = order.size(0), heads = order.size(1), tokens = order.size(2);
  if (order.stride(1) >= order.stride(2)) {
    return at::empty({batch, heads, tokens, dim}, order.options());
  }
  return at::empty({batch, tokens, heads, dim}, order.options()).transpose(1, 2);
}

}  // namespace torchlore::attention
