#pragma once

#include "torchlore/core/state_dict.hpp"

namespace torchlore {

namespace memory {
class AttemptState;
}

/// The states of LibTorch's default random generators: the CPU's, and that of each accelerator.
///
/// ```cpp
/// auto before = torchlore::RngState::capture();
/// auto a = torch::rand(3);
/// before.restore();
/// auto b = torch::rand(3);  // equals a
/// ```
class RngState {
 public:
  /// No generator at all; `restore` does nothing.
  RngState() = default;

  /// The states as they are now.
  /// @note Holds each generator's mutex while it reads it. Host syncs: 0.
  static RngState capture();

  /// Puts the states back: the draws after it repeat those after `capture`. If one cannot be put
  /// back, all stay as they were.
  /// @throws c10::ValueError if a state belongs to a device that this machine lacks, or is not of
  ///         this LibTorch's generators.
  void restore() const;

  /// One entry per generator: "cpu", "cuda:0", "cuda:1", …
  StateDict state_dict() const { return states_; }
  /// Takes over what `state_dict` gave; `restore` then uses it.
  /// @throws c10::ValueError for a key that names no device, or a state that is not bytes.
  void load_state_dict(const StateDict& state);

 private:
  friend class RngScope;
  friend class memory::AttemptState;
  /// `restore` of states that this process's generators had; allocates nothing.
  void put_back() const;

  StateDict states_;
};

/// Restores the generators to where they were when it goes out of scope: what happens inside leaves
/// no trace in the random numbers outside.
///
/// The generators are the process's: what other threads draw meanwhile is undone too.
class [[nodiscard]] RngScope {
 public:
  RngScope() : state_(RngState::capture()) {}
  ~RngScope();
  RngScope(const RngScope&) = delete;
  RngScope& operator=(const RngScope&) = delete;
  RngScope(RngScope&&) = delete;
  RngScope& operator=(RngScope&&) = delete;

 private:
  RngState state_;
};

}  // namespace torchlore
