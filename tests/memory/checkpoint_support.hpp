#pragma once

#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/tolerance.hpp"
#include "torchlore/memory/checkpoint.hpp"

namespace torchlore::testing {

inline at::Tensor leaf(at::IntArrayRef sizes) { return at::randn(sizes).set_requires_grad(true); }

/// The gradients of `loss()` with respect to the tensors, from a fixed start of the random numbers.
template <typename Loss>
std::vector<at::Tensor> gradients_of(const std::vector<at::Tensor>& tensors, const Loss& loss) {
  at::manual_seed(3);
  for (const auto& t : tensors) t.mutable_grad() = at::Tensor();
  loss().backward();
  std::vector<at::Tensor> result;
  for (const auto& t : tensors) result.push_back(t.grad().defined() ? t.grad().clone() : t.grad());
  return result;
}

/// The same gradients, and the same random numbers after them.
template <typename Plain, typename Checkpointed>
void expect_same_gradients(const std::vector<at::Tensor>& tensors, const Plain& plain,
                           const Checkpointed& checkpointed) {
  const auto expected = gradients_of(tensors, plain);
  const auto next = at::rand({4});
  const auto actual = gradients_of(tensors, checkpointed);
  EXPECT_TRUE(same(at::rand({4}), next));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(actual[i].defined(), expected[i].defined()) << i;
    if (!expected[i].defined()) continue;
    EXPECT_TRUE(same(actual[i], expected[i])) << i;
  }
}

}  // namespace torchlore::testing
