#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstddef>

namespace torchlore {

/// LibTorch's autocast settings of a thread at one moment, of every kind of device: what
/// recomputing a forward pass, perhaps on another thread, has to bring back.
class AutocastState {
 public:
  /// The settings of this thread now.
  /// @note Costs some ten reads of thread-local state.
  static AutocastState capture();

 private:
  friend class AutocastStateGuard;
  struct Setting {
    c10::ScalarType dtype = c10::ScalarType::Undefined;
    bool enabled = false;
  };
  void set() const;

  std::array<Setting, 10> devices_ = {};  // as LibTorch lists them
  bool cache_ = true;
};

/// Gives this thread the autocast settings of an `AutocastState` while in scope, as one `Autocast`
/// scope: casts are cached inside, and forgotten at the end of the outermost scope.
class [[nodiscard]] AutocastStateGuard {
 public:
  /// Enters the settings.
  explicit AutocastStateGuard(const AutocastState& state);
  ~AutocastStateGuard();

  AutocastStateGuard(const AutocastStateGuard&) = delete;
  AutocastStateGuard(AutocastStateGuard&&) = delete;
  AutocastStateGuard& operator=(const AutocastStateGuard&) = delete;
  AutocastStateGuard& operator=(AutocastStateGuard&&) = delete;

 private:
  AutocastState previous_;
};

}  // namespace torchlore
