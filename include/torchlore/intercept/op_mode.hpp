#pragma once

#include <memory>
#include <utility>

#include "torchlore/intercept/op_handler.hpp"

namespace torchlore {

namespace intercept {
struct Frame;
}

/// Shows the ops of any code that runs while it is in scope to a handler, which may observe,
/// replace or rewrite them: what a dispatch mode is in Python. The model's source stays untouched.
///
/// ```cpp
/// CountMatmuls handler;
/// {
///   torchlore::OpMode mode(handler);
///   y = model->forward(x);
/// }
/// ```
/// Modes nest: the innermost sees an op first, and what its handler calls goes to the next one
/// around it. They work under autocast, no-grad and inference mode, and end when an exception
/// passes. A mode belongs to the thread that made it; `OpModeState` carries modes to others.
/// Backward inside the scope is seen too as far as it runs on this thread (all of it on the CPU).
///
/// The first mode registers kernels with LibTorch's dispatcher, once for the process, at the keys
/// TESTING_ONLY_GenericMode and TESTING_ONLY_GenericWrapper.
/// @note Ops that the handler does not override cost nothing measurable, and so does code outside.
///       docs/intercept.md has the cost of the others. Host syncs: 0.
/// @note Modes end on their own thread, innermost first. A destructor cannot throw, so a violation
///       is a warning: a mode that outlives the one around it ends with that one; one destroyed on
///       another thread no longer calls its handler.
class [[nodiscard]] OpMode {
 public:
  /// Enters the scope. The handler must outlive it.
  /// @throws c10::Error if another library has taken one of the dispatch keys.
  template <std::derived_from<OpHandler> H>
  explicit OpMode(H& handler) : OpMode(&handler, nullptr, HandledOps::of(handler)) {}
  /// The same, with a handler that lives on where the mode is still needed: in an `OpModeState`,
  /// and in the recomputation of a checkpointed block.
  /// @throws c10::ValueError for a null pointer; as above.
  template <std::derived_from<OpHandler> H>
  explicit OpMode(std::shared_ptr<H> handler)
      : OpMode(handler.get(), handler, HandledOps::of(checked(handler))) {}
  ~OpMode();

  OpMode(const OpMode&) = delete;
  OpMode(OpMode&&) = delete;
  OpMode& operator=(const OpMode&) = delete;
  OpMode& operator=(OpMode&&) = delete;

 private:
  OpMode(OpHandler* handler, std::shared_ptr<OpHandler> owner, HandledOps ops);
  static void check_handler(const OpHandler* handler);
  template <typename H>
  static const H& checked(const std::shared_ptr<H>& handler) {
    check_handler(handler.get());
    return *handler;
  }

  std::shared_ptr<intercept::Frame> frame_;
};

/// The modes of a thread at one moment, to be carried to another thread or to a later time.
///
/// ```cpp
/// auto modes = torchlore::OpModeState::capture();
/// std::thread worker([&] {
///   torchlore::OpModeGuard guard(modes);
///   part = model->forward(half);          // seen by the handlers, now from two threads at once
/// });
/// ```
class OpModeState {
 public:
  /// No mode at all.
  OpModeState() = default;
  /// The modes that this thread is in.
  static OpModeState capture();

  /// Whether there is no mode.
  bool empty() const { return top_ == nullptr; }

 private:
  friend class OpModeGuard;
  std::shared_ptr<intercept::Frame> top_;
};

/// Puts this thread into the modes of an `OpModeState` while in scope, in place of its own.
/// `OpModeGuard off{OpModeState()};` hides a piece of code from all modes.
class [[nodiscard]] OpModeGuard {
 public:
  /// @throws c10::Error if a mode of the state has ended, its handler changes results, and the mode
  ///         does not own the handler.
  explicit OpModeGuard(const OpModeState& state);
  ~OpModeGuard();

  OpModeGuard(const OpModeGuard&) = delete;
  OpModeGuard(OpModeGuard&&) = delete;
  OpModeGuard& operator=(const OpModeGuard&) = delete;
  OpModeGuard& operator=(OpModeGuard&&) = delete;

 private:
  std::shared_ptr<intercept::Frame> entered_;
  const intercept::Frame* previous_;
  const void* home_;  // names the thread
};

}  // namespace torchlore
