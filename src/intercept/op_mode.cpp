#include "torchlore/intercept/op_mode.hpp"

#include <c10/util/Exception.h>

#include <mutex>
#include <vector>

#include "frame.hpp"

namespace torchlore {
namespace intercept {
namespace {

/// Names this thread as long as it lives.
const void* this_thread() { return &innermost; }

c10::DispatchKeySet keys_for(HandledOps chain_ops) {
  c10::DispatchKeySet keys;
  if (chain_ops.typed()) keys = keys.add(kTypedKey);
  if (chain_ops.has(HandledOps::boxed)) keys = keys.add(kBoxedKey);
  return keys;
}

}  // namespace

Frame::Frame(OpHandler& to, std::shared_ptr<OpHandler> owned, HandledOps handled,
             std::shared_ptr<Frame> around)
    : handler(to),
      owner(std::move(owned)),
      ops(handled),
      outer(std::move(around)),
      chain_ops(outer ? ops | outer->chain_ops : ops),
      changes_results(handler.changes_results()),
      home(this_thread()),
      keys(keys_for(chain_ops)) {}

Frame::Frame(std::shared_ptr<Frame> from, std::shared_ptr<Frame> around)
    : handler(from->handler),
      owner(from->owner),
      ops(from->ops),
      outer(std::move(around)),
      chain_ops(outer ? ops | outer->chain_ops : ops),
      changes_results(from->changes_results),
      home(this_thread()),
      keys(keys_for(chain_ops)),
      original(owner ? nullptr : std::move(from)),
      life(original ? original->life : this) {}

}  // namespace intercept

namespace {

using intercept::Frame;
using intercept::innermost;

/// `frame`, or the next one around it whose mode has not ended out of order.
const Frame* not_ended(const Frame* frame) {
  while (frame != nullptr && !frame->open) frame = frame->outer.get();
  return frame;
}

/// The innermost frame of this thread, shared; frames are only ever made shared.
std::shared_ptr<Frame> shared_innermost() {
  const Frame* frame = not_ended(innermost);
  return frame == nullptr ? nullptr : const_cast<Frame*>(frame)->shared_from_this();
}

/// Whether this thread's chain comes to `frame`; each comes to nullptr.
bool in_chain(const Frame* frame) {
  const Frame* f = innermost;
  while (f != nullptr && f != frame) f = f->outer.get();
  return f == frame;
}

/// Ends the modes inside `frame`, which is in this thread's chain. Returns whether there were any.
bool end_modes_inside(const Frame* frame) {
  bool any = false;
  for (const Frame* f = innermost; f != frame; f = f->outer.get()) {
    any |= const_cast<Frame*>(f)->open.exchange(false);
  }
  return any;
}

/// Keeps a frame that a thread may still come by although its scope is gone.
void keep_forever(std::shared_ptr<Frame> frame) {
  static std::mutex mutex;
  static auto* frames = new std::vector<std::shared_ptr<Frame>>;
  const std::lock_guard<std::mutex> lock(mutex);
  frames->push_back(std::move(frame));
}

/// The chain of a state as this thread is to have it: a copy, so that nothing that happens to the
/// modes themselves pulls it away, without the modes that are over.
std::shared_ptr<Frame> copy_chain(const std::shared_ptr<Frame>& frame) {
  if (frame == nullptr) return nullptr;
  auto around = copy_chain(frame->outer);
  if (frame->callable() || frame->owner != nullptr) {
    return std::make_shared<Frame>(frame, std::move(around));
  }
  TORCH_CHECK(!frame->changes_results,
              "an OpMode that is needed again has ended, and with it perhaps its handler; make the "
              "mode from a std::shared_ptr, keep it open, or let the handler's changes_results() "
              "return false if it only looks");
  return around;
}

}  // namespace

OpMode::OpMode(OpHandler* handler, std::shared_ptr<OpHandler> owner, HandledOps ops) {
  intercept::register_kernels();
  frame_ = std::make_shared<Frame>(*handler, std::move(owner), ops, shared_innermost());
  intercept::set_innermost(frame_.get());
}

void OpMode::check_handler(const OpHandler* handler) {
  TORCH_CHECK_VALUE(handler != nullptr, "OpMode was given a null handler");
}

OpMode::~OpMode() {
  if (!frame_->open.exchange(false)) return;  // with a mode around it, which has said so
  if (frame_->home != intercept::this_thread()) {
    keep_forever(frame_);
    TORCH_WARN(
        "an OpMode was destroyed on another thread than its own; its handler is no longer called. "
        "End modes on their own thread");
  } else if (!in_chain(frame_.get())) {
    keep_forever(frame_);
    TORCH_WARN(
        "an OpMode was destroyed while its handler ran, or inside an OpModeGuard; its handler is "
        "no longer called. End modes outside both");
  } else {
    const bool others = end_modes_inside(frame_.get());
    intercept::set_innermost(not_ended(frame_->outer.get()));
    if (others) {
      TORCH_WARN(
          "an OpMode was destroyed before a mode inside it; both have ended. End modes innermost "
          "first");
    }
  }
}

OpModeState OpModeState::capture() {
  OpModeState state;
  state.top_ = shared_innermost();
  return state;
}

OpModeGuard::OpModeGuard(const OpModeState& state)
    : entered_(copy_chain(state.top_)), previous_(innermost), home_(intercept::this_thread()) {
  intercept::set_innermost(entered_.get());
}

OpModeGuard::~OpModeGuard() {
  if (home_ != intercept::this_thread() || !in_chain(entered_.get())) {
    keep_forever(entered_);
    TORCH_WARN(
        "an OpModeGuard was destroyed on another thread than its own, or while a handler ran; its "
        "thread stays in the guard's modes. End guards on their own thread, outside handlers");
    return;
  }
  const bool others = end_modes_inside(entered_.get());
  intercept::set_innermost(previous_);
  if (others) {
    TORCH_WARN(
        "an OpModeGuard was destroyed before a mode inside it; both have ended. End modes "
        "innermost first");
  }
}

}  // namespace torchlore
