#pragma once

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/parameters.hpp"

/// What the tests of the fused optimizers share.
namespace torchlore::testing {

/// Parameters of sizes around the vector widths, an empty one, a 0-d one, and one whose memory
/// order is not row-major.
inline std::vector<at::Tensor> odd_shapes(at::ScalarType dtype) {
  const auto options = at::TensorOptions(dtype);
  std::vector<at::Tensor> params;
  for (const int64_t n : {1, 7, 16, 33, 1003})
    params.push_back(at::randn({n}, at::kDouble).to(dtype));
  params.push_back(at::randn({}, at::kDouble).to(dtype));
  params.push_back(at::empty({0, 3}, options));
  params.push_back(at::randn({5, 3}, at::kDouble).to(dtype).t());
  params.push_back(
      at::randn({2, 3, 4, 5}, at::kDouble).to(dtype).to(at::MemoryFormat::ChannelsLast));
  for (auto& p : params) p.requires_grad_();
  return params;
}

/// Copies with the same strides, to be trained by another optimizer.
inline std::vector<at::Tensor> copies(const std::vector<at::Tensor>& params) {
  std::vector<at::Tensor> result;
  for (const auto& p : params) {
    result.push_back(p.detach().clone(at::MemoryFormat::Preserve).requires_grad_());
  }
  return result;
}

/// Gives both lists the same random gradients, laid out as the parameters are.
inline void set_gradients(std::vector<at::Tensor>& a, std::vector<at::Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const auto grad = at::empty_like(a[i].detach());
    grad.copy_(at::randn(a[i].sizes(), at::kDouble));
    a[i].mutable_grad() = grad;
    b[i].mutable_grad() = grad.clone(at::MemoryFormat::Preserve);
  }
}

/// The largest difference between two lists of tensors.
inline double largest_difference(const std::vector<at::Tensor>& a,
                                 const std::vector<at::Tensor>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].numel() == 0) continue;
    const auto difference =
        (a[i].detach().to(at::kDouble) - b[i].detach().to(at::kDouble)).abs().max();
    largest = std::max(largest, difference.item<double>());
  }
  return largest;
}

/// The namesake and the fused optimizer on copies of the same parameters, with the same gradients.
template <typename Namesake, typename Fused, typename Options>
struct Twin {
  Twin(std::vector<at::Tensor> params, const Options& options)
      : plain_params(copies(params)),
        fused_params(std::move(params)),
        plain(plain_params, options),
        fused(fused_params, options) {}

  void step() {
    set_gradients(plain_params, fused_params);
    plain.step();
    fused.step();
  }

  ::testing::AssertionResult equal() const {
    const double limit = fused_params[0].scalar_type() == at::kDouble ? 1e-12 : 1e-6;
    const double difference = largest_difference(plain_params, fused_params);
    if (difference <= limit) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "parameters differ by " << difference;
  }

  std::vector<at::Tensor> plain_params;
  std::vector<at::Tensor> fused_params;
  Namesake plain;
  Fused fused;
};

template <typename Fused, typename Options>
void expect_scaled_step_equals_division(at::ScalarType dtype, const Options& options) {
  auto by_hand = odd_shapes(dtype);
  auto in_kernel = copies(by_hand);
  Fused first(by_hand, options);
  Fused second(in_kernel, options);
  const auto divisor = at::scalar_tensor(3.7, at::kFloat);
  for (int i = 0; i < 5; ++i) {
    set_gradients(by_hand, in_kernel);
    divide_gradients_(gradients(by_hand), divisor);
    first.step();
    second.step_scaled(divisor);
    for (size_t k = 0; k < by_hand.size(); ++k) {
      EXPECT_TRUE(same(in_kernel[k].detach(), by_hand[k].detach())) << dtype << " parameter " << k;
      EXPECT_TRUE(same(in_kernel[k].grad(), by_hand[k].grad())) << dtype << " gradient " << k;
    }
  }
}

}  // namespace torchlore::testing
