#pragma once

#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <memory>

#include "torchlore/intercept/saved_tensor_scope.hpp"

namespace torchlore::intercept {

/// A handler that makes autograd's hooks itself: one allocation for each tensor saved instead of
/// two, and none of the guards around `pack`. Its hooks see to what those guards are for.
class HookFactory : public SavedTensorHandler {
 public:
  /// The hooks of the next tensor that this thread saves; nullptr leaves it to `pack`.
  virtual std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() = 0;
};

/// The handler of this thread's innermost SavedTensorScope, or nullptr.
const SavedTensorHandler* innermost_saved_tensor_handler();

/// Hides a piece of code from this thread's modes and saved-tensor scopes.
class Hidden {
 public:
  Hidden();
  ~Hidden();
  Hidden(const Hidden&) = delete;
  Hidden(Hidden&&) = delete;
  Hidden& operator=(const Hidden&) = delete;
  Hidden& operator=(Hidden&&) = delete;

 private:
  const struct Frame* frame_;
  void* level_;
};

}  // namespace torchlore::intercept
