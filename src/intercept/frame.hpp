#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <atomic>
#include <memory>

#include "torchlore/intercept/op_handler.hpp"

/// How the modes of a thread are kept: a chain of frames, innermost first.
namespace torchlore::intercept {

/// Where the kernels of typed ops are, and the one kernel of all others. The first is above the
/// second, and both are above autograd and autocast.
inline constexpr auto kTypedKey = c10::DispatchKey::TESTING_ONLY_GenericMode;
inline constexpr auto kBoxedKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;
static_assert(kTypedKey > kBoxedKey, "the dispatcher must come to the typed kernels first");

/// Those of the keys that come after `key`.
inline c10::DispatchKeySet below(c10::DispatchKeySet keys, c10::DispatchKey key) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, key);
}

/// One mode, and the modes around it.
struct Frame : std::enable_shared_from_this<Frame> {
  /// That of a new mode.
  Frame(OpHandler& to, std::shared_ptr<OpHandler> owned, HandledOps handled,
        std::shared_ptr<Frame> around);
  /// A copy with other modes around it. If it owns its handler it outlives the mode; otherwise it
  /// ends with it.
  Frame(std::shared_ptr<Frame> original, std::shared_ptr<Frame> around);

  /// Whether the mode is alive, so that its handler may be called.
  bool callable() const { return life->open.load(std::memory_order_relaxed); }
  /// Whether the handler overrides the op and may be called.
  bool wants(HandledOps::Op op) const { return ops.has(op) && callable(); }

  OpHandler& handler;
  const std::shared_ptr<OpHandler> owner;
  const HandledOps ops;
  const std::shared_ptr<Frame> outer;
  const HandledOps chain_ops;  // of this frame and those around it
  const bool changes_results;
  const void* const home;                 // names the thread
  const c10::DispatchKeySet keys;         // that must be on for this chain
  std::atomic<bool> open = true;          // the mode is alive
  const std::shared_ptr<Frame> original;  // of a copy that ends with it
  const Frame* const life = this;         // whose `open` counts
};

/// This thread's innermost frame, or nullptr.
extern constinit thread_local const Frame* innermost;

/// Makes `frame` the innermost one, and switches the dispatch keys to what its chain needs.
inline void set_innermost(const Frame* frame) {
  innermost = frame;
  constexpr auto ours = c10::DispatchKeySet(kTypedKey) | c10::DispatchKeySet(kBoxedKey);
  auto local = c10::impl::tls_local_dispatch_key_set();
  const auto included =
      (local.included_ - ours) | (frame == nullptr ? c10::DispatchKeySet() : frame->keys);
  if (included == local.included_) return;  // another mode needs the same: the usual case
  local.included_ = included;
  c10::impl::_force_tls_local_dispatch_key_set(local);
}

/// Makes `frame` the innermost one while in scope.
class FrameGuard {
 public:
  explicit FrameGuard(const Frame* frame) : previous_(innermost) { set_innermost(frame); }
  ~FrameGuard() { set_innermost(previous_); }
  FrameGuard(const FrameGuard&) = delete;
  FrameGuard(FrameGuard&&) = delete;
  FrameGuard& operator=(const FrameGuard&) = delete;
  FrameGuard& operator=(FrameGuard&&) = delete;

 private:
  const Frame* previous_;
};

/// Registers the kernels with LibTorch's dispatcher, once. @throws c10::Error if a key is taken.
void register_kernels();
/// The part of it for typed ops.
void register_typed_kernels();

}  // namespace torchlore::intercept
