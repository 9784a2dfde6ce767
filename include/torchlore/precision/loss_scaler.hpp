#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/state_dict.hpp"

namespace torch::optim {
class Optimizer;
}

namespace torchlore {

/// Options of `LossScaler`; the defaults are those of `torch.amp.GradScaler`.
struct LossScalerOptions {
  /// The scale at the start. A power of two keeps scaling and unscaling exact.
  double init_scale = 65536.0;
  /// The scale is multiplied by this after `growth_interval` clean steps in a row; > 1.
  double growth_factor = 2.0;
  /// The scale is multiplied by this after an overflow; in (0, 1).
  double backoff_factor = 0.5;
  /// Clean steps in a row before the scale grows.
  int64_t growth_interval = 2000;
  /// false makes every call a no-op (`step` only steps), so that one loop serves all precisions.
  bool enabled = true;
  /// Backs off at the n-th overflow, and tolerates those before: 1 backs off at once, DeepSpeed's
  /// default is 2. A tolerated overflow still skips its step and restarts the growth interval.
  int64_t hysteresis = 1;
  /// true: every clean step forgives earlier overflows, so only overflows in a row back off.
  /// false: they are forgiven when the scale grows.
  bool consecutive_hysteresis = false;
  /// The scale never falls below this; see `LossScaler::at_floor`. The default is the smallest
  /// normal float32: below it the reciprocal overflows, and GradScaler writes NaN into the
  /// parameters.
  double min_scale = 0x1p-126;
  /// The scale never grows above this; the default is the largest float32.
  double max_scale = 0x1.fffffep127;
  /// Ranks agree on found_inf by MAX: all skip or none. A rank without gradients joins too.
  Reducer reducer = {};
};

/// What `LossScaler::step_clipped` did.
struct ClippedStep {
  bool stepped = false;  ///< false: a gradient was inf or NaN, and nothing was changed.
  at::Tensor norm;       ///< 0-d: the norm of the unscaled gradients before clipping.
};

/// Scales the loss so that small float16 gradients survive backward, and adapts the scale: what
/// `torch.amp.GradScaler` is in Python, call for call.
///
/// ```cpp
/// torchlore::LossScaler scaler;
/// scaler.scale(loss).backward();
/// scaler.unscale_(optimizer);                  // optional: to look at or clip gradients
/// torchlore::clip_grad_norm_(model->parameters(), 1.0);
/// scaler.step(optimizer);                      // skips the step if a gradient is inf or NaN
/// scaler.update();                             // once, after all optimizers
/// ```
/// An overflow multiplies the scale by `backoff_factor`; `growth_interval` clean steps in a row
/// multiply it by `growth_factor`. The first steps of a run overflow now and then: that is the
/// scale being found. With accumulation, scale every micro-batch, but unscale, step and update only
/// at the end of the window. The scale lives on the device of the first scaled loss.
/// @note Host syncs: one in `step`, none in `scale`, `unscale_` and `update`. Not thread-safe.
/// Source: Micikevicius et al. (2018), arXiv:1710.03740, section 3.2.
class LossScaler {
 public:
  /// Makes a scaler; the scale itself is made by the first `scale`.
  /// @throws c10::ValueError for an option outside its range.
  explicit LossScaler(LossScalerOptions options = {});

  LossScaler(const LossScaler&) = delete;
  LossScaler& operator=(const LossScaler&) = delete;
  /// Takes the other's scale and state over; the other may only be destroyed or assigned to.
  LossScaler(LossScaler&&) noexcept = default;
  /// As the move constructor.
  LossScaler& operator=(LossScaler&&) noexcept = default;
  ~LossScaler() = default;

  /// The loss times the scale, differentiable; itself if disabled.
  /// @param output floating or complex tensor of any shape, on any device. Take the loss in float32
  ///               (autocast's losses are): 65536 itself overflows float16.
  /// @throws c10::ValueError for an undefined tensor, c10::TypeError for integers.
  at::Tensor scale(const at::Tensor& output);
  /// The same for several outputs, on one device or several.
  std::vector<at::Tensor> scale(const std::vector<at::Tensor>& outputs);

  /// Divides the optimizer's gradients by the scale, in place, and notes whether any is inf or NaN.
  /// Gradients: dense or sparse; bfloat16, float32, float64; on any devices.
  /// @throws c10::Error if called before `scale`, twice for one optimizer before `update`, or after
  ///         its `step`; c10::ValueError for float16 gradients; c10::TypeError for complex ones.
  ///         Nothing is written then.
  /// @note O(elements), one read and one write; host syncs: 0. A reducer is called once.
  void unscale_(torch::optim::Optimizer& optimizer);

  /// `unscale_` and `clip_grad_norm_` in one pass less: gradients are read once, and written once,
  /// divided by scale and clip together. Bit-equal to the two calls where the scale is a power of
  /// two. If disabled it clips only.
  /// @param optimizer   whose gradients are divided in place.
  /// @param max_norm    > 0, the norm that the unscaled gradients have at most afterwards.
  /// @param norm_type   as in `gradient_stats`: 2, 1, infinity, or another p > 0.
  /// @param norm_ranks  for gradients sharded over ranks: sums the norm over them. Leave it alone
  ///                    where every rank holds all gradients; found_inf has the options' reducer.
  /// @return the norm of the unscaled gradients before clipping: 0-d, float32, or float64 if a
  ///         gradient is. It is not finite if a gradient is not, and `step` will then skip. A norm
  ///         that leaves its own range counts as an overflow too.
  /// @throws c10::ValueError unless max_norm and norm_type are > 0; and as `unscale_`.
  /// @note O(elements), one read, then one read and write; host syncs: 0.
  at::Tensor unscale_and_clip_(torch::optim::Optimizer& optimizer, double max_norm,
                               double norm_type = 2.0, const Reducer& norm_ranks = {});

  /// Steps the optimizer unless a gradient is inf or NaN; unscales first if that was not done. An
  /// optimizer that is a `ScaledStep` unscales while it steps: gradients are then only read here,
  /// and may be float16.
  /// @return whether it stepped. Advance a learning-rate schedule only then.
  /// @throws c10::Error if called before `scale`, twice before `update`, without any gradient (and
  ///         without a reducer); c10::NotImplementedError for an optimizer that needs a closure;
  ///         and as `unscale_`.
  /// @note Host syncs: 1, to know whether to step.
  bool step(torch::optim::Optimizer& optimizer);
  /// Refused while enabled, because a closure runs backward several times in a step; when disabled,
  /// calls `optimizer.step(closure)` and returns true.
  /// @throws c10::NotImplementedError if enabled.
  bool step(torch::optim::Optimizer& optimizer, const std::function<at::Tensor()>& closure);
  /// `unscale_and_clip_` and `step` together, the cheapest form: a `ScaledStep` unscales and clips
  /// while it steps, and no other optimizer's gradients are written when the step is skipped.
  /// Parameters and errors as there.
  /// @note Host syncs: 1.
  ClippedStep step_clipped(torch::optim::Optimizer& optimizer, double max_norm,
                           double norm_type = 2.0, const Reducer& norm_ranks = {});

  /// Adapts the scale to the overflows of all optimizers since the last call, and starts the next
  /// iteration. Host syncs: 0.
  /// @throws c10::Error if nothing was unscaled or stepped since the last call.
  void update();
  /// Sets the scale instead; the growth interval goes on. Nothing needs to have been stepped.
  /// @throws c10::ValueError unless `new_scale` is finite, > 0 and within min_scale and max_scale.
  void update(double new_scale);
  /// The same with one number on any device, limited to min_scale and max_scale. Host syncs: 0.
  /// @throws c10::ValueError unless `new_scale` is one floating number without gradient.
  void update(const at::Tensor& new_scale);

  /// The current scale; 1 if disabled. Host syncs: 1.
  double get_scale() const;
  /// What the scale is multiplied by after `growth_interval` clean steps in a row.
  double get_growth_factor() const { return options_.growth_factor; }
  /// Takes effect at the next update. @throws c10::ValueError unless `factor` is finite and > 1.
  void set_growth_factor(double factor);
  /// What the scale is multiplied by after an overflow.
  double get_backoff_factor() const { return options_.backoff_factor; }
  /// Takes effect at the next update. @throws c10::ValueError unless 0 < `factor` < 1.
  void set_backoff_factor(double factor);
  /// Clean steps in a row before the scale grows.
  int64_t get_growth_interval() const { return options_.growth_interval; }
  /// Takes effect at the next update. @throws c10::ValueError unless `interval` >= 1.
  void set_growth_interval(int64_t interval);
  /// Whether losses are scaled at all.
  bool is_enabled() const { return options_.enabled; }

  /// True if the last update met an overflow that could not lower the scale, because it was at
  /// min_scale: float16 is then too narrow for this model, and bfloat16 is the way on.
  /// Host syncs: 1.
  bool at_floor() const;

  /// GradScaler's keys `scale, growth_factor, backoff_factor, growth_interval` and
  /// `_growth_tracker`, and `_hysteresis_tracker`; empty if disabled. Call it after `update`.
  /// Host syncs: 3.
  StateDict state_dict() const;
  /// Takes up a saved state, also one of Python's GradScaler. Limits, hysteresis and the reducer
  /// stay as constructed, and the scale is brought within the limits. A no-op if disabled.
  /// @throws c10::ValueError if the state is empty, lacks a key, or holds a value out of range;
  ///         nothing is changed then.
  void load_state_dict(const StateDict& state);

  /// @name For loops that unscale by themselves
  /// `TrainingStep` does its own `gradient_stats` and division, and only reports what it found:
  /// `divide_gradients_(grads, scaler.scale_tensor(device)); …; scaler.update_from(found_inf);`
  /// @{

  /// The scale as a 0-d float32 tensor on `device`; 1 if disabled. The tensor may be the scaler's
  /// own: do not write to it. Host syncs: 0.
  at::Tensor scale_tensor(c10::Device device);
  /// `update()`, with `found_inf` counted as one more optimizer's.
  /// @param found_inf one floating number on any device, 0 if the gradients were finite. It must be
  ///        equal on all ranks: the reducer is not called.
  /// @throws c10::ValueError unless it is one floating number; c10::Error before any scale.
  void update_from(const at::Tensor& found_inf);
  /// @}

 private:
  enum class Stage { ready, unscaled, stepped };
  struct OptimizerState {
    const void* optimizer;  // its address, only compared
    Stage stage;
    bool had_gradients;
    at::Tensor found_inf;  // 0-d float32 on the scale's device
  };

  void create_scale(c10::Device device);
  void check_scale_exists(const char* caller) const;
  void check_can_step(torch::optim::Optimizer& optimizer, const char* caller);
  void check_can_unscale(const torch::optim::Optimizer& optimizer, const char* caller);
  OptimizerState& state_of(const torch::optim::Optimizer& optimizer);
  void record(const torch::optim::Optimizer& optimizer, at::Tensor found_inf, bool had_gradients);
  ClippedNorm measure(const torch::optim::Optimizer& optimizer, at::TensorList grads,
                      double max_norm, double norm_type, const Reducer& norm_ranks);
  template <typename F>
  bool step_if_finite(const torch::optim::Optimizer& optimizer, const F& make_step);
  void adapt_scale(const at::Tensor& found_inf);

  LossScalerOptions options_;
  // Values to start from until the first scale() tells the device.
  double initial_scale_;
  int64_t initial_growth_tracker_ = 0;
  int64_t initial_hysteresis_tracker_;
  // 0-d tensors on one device: float32, int32, int32. Undefined before the first scale().
  at::Tensor scale_;
  at::Tensor growth_tracker_;
  at::Tensor hysteresis_tracker_;
  // For at_floor(): what the last update() met, and the scale it met it with. Undefined before it.
  at::Tensor last_overflow_;
  at::Tensor scale_before_;
  std::vector<OptimizerState> optimizers_;
};

}  // namespace torchlore
