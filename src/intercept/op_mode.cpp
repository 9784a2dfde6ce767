#include "torchlore/intercept/op_mode.hpp"

#include <c10/util/Exception.h>

#include "frame.hpp"

namespace torchlore {
namespace {

using intercept::Frame;

/// The innermost frame of this thread, shared; frames are only ever made shared.
std::shared_ptr<Frame> shared_current_frame() {
  const Frame* frame = intercept::innermost;
  return frame == nullptr ? nullptr : const_cast<Frame*>(frame)->shared_from_this();
}

bool in_chain(const Frame* frame) {
  for (auto* f = intercept::innermost; f != nullptr; f = f->outer.get()) {
    if (f == frame) return true;
  }
  return false;
}

}  // namespace

OpMode::OpMode(OpHandler* handler, std::shared_ptr<OpHandler> owner, HandledOps ops) {
  intercept::register_kernels();
  frame_ = std::make_shared<Frame>(*handler, std::move(owner), ops, shared_current_frame());
  intercept::set_innermost(frame_.get());
}

void OpMode::check_handler(const OpHandler* handler) {
  TORCH_CHECK_VALUE(handler != nullptr, "OpMode was given a null handler");
}

OpMode::~OpMode() {
  frame_->open = false;
  if (intercept::innermost == frame_.get()) {
    intercept::set_innermost(frame_->outer.get());
    return;
  }
  if (in_chain(frame_.get())) {
    TORCH_WARN(
        "an OpMode was destroyed before a mode inside it; both have ended. End modes innermost "
        "first");
    intercept::set_innermost(frame_->outer.get());
    return;
  }
  TORCH_WARN(
      "an OpMode was destroyed on another thread than its own, or after the mode around it; its "
      "handler is no longer called. End modes on their thread, innermost first");
  // Its own thread may still come by this frame.
  static_cast<void>(new std::shared_ptr<Frame>(frame_));
}

OpModeState OpModeState::capture() {
  OpModeState state;
  state.top_ = shared_current_frame();
  return state;
}

OpModeGuard::OpModeGuard(const OpModeState& state)
    : entered_(state.top_), previous_(intercept::innermost) {
  for (auto* frame = entered_.get(); frame != nullptr; frame = frame->outer.get()) {
    TORCH_CHECK(frame->callable() || !frame->changes_results,
                "an OpMode that is needed again has ended, and with it perhaps its handler; make "
                "the mode from a std::shared_ptr, keep it open, or let the handler's "
                "changes_results() return false if it only looks");
  }
  intercept::set_innermost(entered_.get());
}

OpModeGuard::~OpModeGuard() { intercept::set_innermost(previous_); }

}  // namespace torchlore
