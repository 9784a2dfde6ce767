#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <memory>
#include <optional>
#include <utility>

#include "torchlore/core/parameters.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/state_dict.hpp"

namespace torchlore {

/// One way to clip: what an own one derives from. Those of torchlore are made by the functions in
/// `clip::`.
///
/// There are two kinds. One limits the norm of all gradients together: it has a `norm_type()` and
/// decides a `max_norm` in every step. The norm is measured in one read, and the gradients are
/// divided once, by loss scale × count × clip, or inside a fused optimizer. The other kind limits
/// something else (elements, rows) and writes the gradients itself: its `norm_type()` is nothing,
/// and it has a `divide_and_clip_`.
/// ```cpp
/// struct HalfOfTheLargest : torchlore::Clipper {
///   double max_norm(const at::Tensor& norm) override {
///     largest = std::max(largest, norm.item<double>());
///     return std::max(largest / 2, 1e-6);
///   }
///   bool adaptive() const override { return true; }
///   double largest = 0;
/// };
/// torchlore::TrainingStep step(optimizer, {.clip = HalfOfTheLargest{}});
/// ```
class Clipper {
 public:
  virtual ~Clipper() = default;

  /// The p of the norm that is limited; nothing for a clipper that limits something else.
  virtual std::optional<double> norm_type() const { return 2.0; }

  /// Decides the largest norm that the gradients may have in this step; called once per step that
  /// is made, so never for one that a loss scaler skips. The default never clips.
  /// @param norm 0-d: the norm before clipping, everything else divided out; perhaps inf or NaN.
  ///             Only a clipper that reads its value costs a host sync.
  /// @return > 0; infinity not to clip.
  virtual double max_norm(const at::Tensor& norm);

  /// Whether `max_norm` depends on norms: ranks then agree on the norm first.
  virtual bool adaptive() const { return false; }

  /// Divides all gradients by `divisor` and limits them, in place. The default only divides.
  /// @param parameters with their gradients; one call per step and optimizer.
  /// @param divisor 0-d floating tensor, > 0.
  virtual void divide_and_clip_(const ParameterView& parameters, const at::Tensor& divisor);

  /// What `max_norm` remembers between steps; nothing by default.
  virtual StateDict state_dict() const { return {}; }
  /// Takes the saved state over, or throws c10::ValueError and changes nothing.
  virtual void load_state_dict(const StateDict& /*state*/) {}

 protected:
  Clipper() = default;
  Clipper(const Clipper&) = default;
  Clipper& operator=(const Clipper&) = default;
};

/// Options of `Clip::clip_`.
struct ClipOptions {
  /// A factor that all gradients still carry, divided out in the same pass: a loss scale, the count
  /// of an accumulation window, or their product. Undefined: 1.
  at::Tensor divisor = {};
  /// For gradients sharded over ranks: combines the norm. Leave alone where every rank holds all.
  Reducer reducer = {};
};

/// A way to clip, as a value: the `.clip` of `TrainingStepOptions`, and a clipper for loops written
/// by hand. Made by the functions in `clip::`, or from an own `Clipper`.
///
/// A copy has a history of its own, so options may be used for several runs.
/// ```cpp
/// torchlore::Clip clipper = torchlore::clip::zclip();
/// for (auto& batch : *loader) {
///   scaler.scale(loss(batch)).backward();
///   scaler.unscale_(optimizer);
///   clipper.clip_(*model);
///   …
/// }
/// ```
class Clip {
 public:
  /// No clipping.
  Clip() = default;
  /// From any class derived from Clipper that can be copied.
  template <std::derived_from<Clipper> C>
  Clip(C clipper)
      : clipper_(std::make_unique<C>(std::move(clipper))), copy_([](const Clipper& from) {
          return std::unique_ptr<Clipper>(std::make_unique<C>(static_cast<const C&>(from)));
        }) {}
  /// Copies the history too.
  Clip(const Clip& other);
  /// Copies the history too.
  Clip& operator=(const Clip& other);
  Clip(Clip&&) noexcept = default;
  Clip& operator=(Clip&&) noexcept = default;
  ~Clip() = default;

  /// Clips the gradients, in place: one step's decision.
  /// @param parameters whose gradients are clipped.
  /// @param options    see ClipOptions.
  /// @return the norm before clipping, after `options.divisor`: 0-d, as `gradient_stats` gives it;
  ///         undefined for a way of clipping that needs none.
  /// @throws c10::ValueError for an empty list of parameters; c10::TypeError for integer or complex
  ///         gradients; c10::Error for a non-finite norm where the clipper was asked to. Nothing is
  ///         written then.
  /// @note O(elements). Host syncs: what the clipper needs; see the functions in `clip::`.
  at::Tensor clip_(const ParameterView& parameters, const ClipOptions& options = {});

  /// What the clipper remembers; empty where it remembers nothing. Save between steps.
  StateDict state_dict() const;
  /// Takes the saved state over. @throws c10::ValueError if something is missing or out of range;
  /// nothing is changed then.
  void load_state_dict(const StateDict& state);

  /// The clipper itself; nullptr for no clipping.
  Clipper* clipper() { return clipper_.get(); }

 private:
  std::unique_ptr<Clipper> clipper_;
  std::unique_ptr<Clipper> (*copy_)(const Clipper&) = nullptr;
};

}  // namespace torchlore
