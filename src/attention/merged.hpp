#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/logaddexp.h>

#include <limits>
#include <tuple>

namespace torchlore::attention {

/// Softmax over two disjoint sets of keys, of each of which there is the output [B, H, T, E] and the
/// log-sum-exp [B, H, T]. In the dtype of the first output.
inline std::tuple<at::Tensor, at::Tensor> merged(const std::tuple<at::Tensor, at::Tensor>& a,
                                                 const std::tuple<at::Tensor, at::Tensor>& b) {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const auto sums = at::logaddexp(std::get<1>(a), std::get<1>(b));
  // Rows that see nothing: the difference of two infinities would be NaN.
  const auto base = sums.masked_fill(sums == kMinusInfinity, 0);
  const auto weighed = [&](const std::tuple<at::Tensor, at::Tensor>& part) {
    return std::get<0>(part) * (std::get<1>(part) - base).exp_().unsqueeze(3);
  };
  return {(weighed(a) + weighed(b)).to(std::get<0>(a).scalar_type()), sums};
}

}  // namespace torchlore::attention
