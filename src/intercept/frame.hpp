#pragma once

#include <atomic>
#include <memory>

#include "torchlore/intercept/op_handler.hpp"

/// How the modes of a thread are kept: a chain of frames, innermost first.
namespace torchlore::intercept {

/// One mode, and the modes around it.
struct Frame : std::enable_shared_from_this<Frame> {
  Frame(OpHandler& to, std::shared_ptr<OpHandler> owned, HandledOps handled,
        std::shared_ptr<Frame> around)
      : handler(to),
        owner(std::move(owned)),
        ops(handled),
        outer(std::move(around)),
        any_typed(ops.typed() || (outer && outer->any_typed)),
        any_boxed(ops.has(HandledOps::boxed) || (outer && outer->any_boxed)) {}

  /// Whether the handler may still be called.
  bool callable() const { return owner != nullptr || open.load(std::memory_order_relaxed); }

  OpHandler& handler;
  const std::shared_ptr<OpHandler> owner;
  const HandledOps ops;
  const std::shared_ptr<Frame> outer;
  const bool any_typed;  // this frame or one around it
  const bool any_boxed;
  const bool changes_results = handler.changes_results();
  std::atomic<bool> open = true;  // its OpMode is alive
};

/// This thread's innermost frame, or nullptr.
const Frame* current_frame();

/// Makes `frame` the innermost one, and switches the dispatch keys to what its chain needs.
void set_current_frame(const Frame* frame);

/// Makes `frame` the innermost one while in scope.
class FrameGuard {
 public:
  explicit FrameGuard(const Frame* frame) : previous_(current_frame()) { set_current_frame(frame); }
  ~FrameGuard() { set_current_frame(previous_); }
  FrameGuard(const FrameGuard&) = delete;
  FrameGuard(FrameGuard&&) = delete;
  FrameGuard& operator=(const FrameGuard&) = delete;
  FrameGuard& operator=(FrameGuard&&) = delete;

 private:
  const Frame* previous_;
};

/// Registers the kernels with LibTorch's dispatcher, once. @throws c10::Error if a key is taken.
void register_kernels();

}  // namespace torchlore::intercept
