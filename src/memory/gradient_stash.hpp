#pragma once

#include <ATen/core/Tensor.h>

#include <unordered_set>
#include <utility>
#include <vector>

namespace torchlore::memory {

/// Keeps gradients aside while new ones are made, so that the new ones can be dropped or scaled.
class GradientStash {
 public:
  /// Before backward of `loss`: moves aside the gradients of all leaves that it would reach.
  void before_backward(const at::Tensor& loss);
  /// Puts the old gradients back and drops the new ones. Allocates nothing.
  void undo();
  /// Multiplies the new gradients.
  void scale_(double factor) const;
  /// Adds the new gradients to the old ones, in place where they are dense.
  void join();

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> old_;  // a leaf, and its gradient
  std::unordered_set<const void*> seen_;
};

}  // namespace torchlore::memory
