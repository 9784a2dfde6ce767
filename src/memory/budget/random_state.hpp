#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <utility>

namespace torchlore::budget {

/// The states of the default generators that an op may draw from. Unlike `RngState` it leaves out
/// devices that the op does not touch: it is taken for every random op.
class RandomState {
 public:
  /// Adds the default generator of the device, as it is now.
  void add(c10::Device device);
  /// Puts the states back.
  void restore() const;
  /// The same generators, as they are now.
  RandomState now() const;

 private:
  c10::SmallVector<std::pair<at::Generator, at::Tensor>, 1> states_;
};

/// Puts the generators into a recorded state while in scope, and back after.
class RandomScope {
 public:
  /// Nothing for a null pointer.
  explicit RandomScope(const RandomState* state) {
    if (state == nullptr) return;
    before_ = state->now();
    state->restore();
  }
  ~RandomScope() { before_.restore(); }
  RandomScope(const RandomScope&) = delete;
  RandomScope(RandomScope&&) = delete;
  RandomScope& operator=(const RandomScope&) = delete;
  RandomScope& operator=(RandomScope&&) = delete;

 private:
  RandomState before_;
};

}  // namespace torchlore::budget
