#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "torchlore/core/batch.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/loss.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/core/scaled_step.hpp"
#include "torchlore/core/select_examples.hpp"
#include "torchlore/core/state_dict.hpp"
#include "torchlore/core/step_result.hpp"
#include "torchlore/gradient/accumulator.hpp"
#include "torchlore/gradient/clip.hpp"
#include "torchlore/gradient/spike_guard.hpp"
#include "torchlore/memory/activations.hpp"
#include "torchlore/memory/retry.hpp"
#include "torchlore/memory/run_or_split.hpp"
#include "torchlore/optimizer/weight_average.hpp"
#include "torchlore/precision/autocast.hpp"
#include "torchlore/precision/loss_scaler.hpp"
#include "torchlore/precision/precision.hpp"
#include "torchlore/precision/precision_fallback.hpp"
#include "torchlore/privacy/differentially_private.hpp"
#include "torchlore/schedule/learning_rate.hpp"

namespace torch::optim {
class Optimizer;
}

namespace torchlore {

/// The stages of a `TrainingStep`; each default is the plain loop's.
struct TrainingStepOptions {
  /// fp32() (as the model is), bf16() or fp16() autocast of the forward pass.
  Precision precision = Precision::fp32();
  /// What becomes of the activations that the forward pass saves: keep(), budget(bytes),
  /// compress(dtype) or offload().
  Activations activations = Activations::keep();
  /// Another way to the gradients than backward: `differentially_private(model, options)`. The window is
  /// then a logical batch, and the loss function returns one loss per example. A handle. Saved with the
  /// step. Nothing: backward.
  std::optional<DifferentiallyPrivate> gradient = std::nullopt;
  /// How many micro-batches make a step.
  Accumulate accumulate = Accumulate::batches(1);
  /// One of `clip::`: none(), norm(max_norm), norm(schedule), value(v), autoclip(percentile),
  /// zclip(), agc(); or an own `Clipper`.
  Clip clip = clip::none();
  /// The learning rates of all optimizers: factors of the rates they have when the step is made.
  /// Nothing: the rates are left alone.
  std::optional<Schedule> schedule = std::nullopt;
  /// A running average of the weights, updated after real steps; with a spike guard only once the
  /// next loss has shown the weights to be good, or by finish(). A handle: put it into the model for
  /// evaluation by `swap()` on your own copy. Saved with the step.
  std::optional<WeightAverage> average = std::nullopt;
  /// A SpikeGuard over all optimizers, which clips, skips or rolls back what would explode. Give it
  /// the model, if it has buffers: `SpikeGuardOptions{.model = &*model}`. Nothing: no guard.
  std::optional<SpikeGuardOptions> spike = std::nullopt;
  /// Runs forward and backward of a micro-batch again when they failed for a reason that may pass.
  /// Gradients are put back by themselves, buffers if `model` is named. Nothing: errors go out.
  std::optional<RetryOptions> retry = std::nullopt;
  /// Runs the batch of `step(batch, f)` in parts when memory runs out. Nothing: the error goes out.
  std::optional<SplitOptions> split = std::nullopt;
  /// Ranks of data-parallel training, whose gradients are averaged before the step: they agree on
  /// counts, found_inf, what adaptive clippers and the spike guard decide on, and on errors.
  Reducer reducer = {};
};

/// One optimizer step, with every stage in its one right place. The loop, the model, the data and
/// the optimizer stay yours.
///
/// ```cpp
/// torchlore::TrainingStep step(optimizer, {.precision = torchlore::Precision::bf16(),
///                                          .accumulate = torchlore::Accumulate::batches(4),
///                                          .clip = torchlore::clip::norm(1.0)});
/// for (auto& batch : *loader) {
///   auto r = step([&] { return cross_entropy(model->forward(batch.data), batch.target); });
///   if (r.stepped()) std::cout << r.loss() << '\n';
/// }
/// step.finish();  // the last, partial window
/// ```
/// A call does, in this order: clear the gradients (at a window's start); the forward pass in
/// autocast; backward of the loss, times the loss scale; and when the window is full: one read over
/// all gradients (norm, inf and NaN), a skip if the scaler found one, what the spike guard decides,
/// one division by scale × count × clip, the optimizers' steps, the next rates of the schedule, and
/// the weight average. An optimizer that is a `ScaledStep` (torchlore's fused ones) divides while it
/// steps, and saves the write.
///
/// The parameters end bit-equal to the same loop written by hand with torchlore's objects; without
/// precision, clipping and accumulation also to the plain LibTorch loop. (With a loss scale or a
/// window that is no power of two, writing gradients in two steps rounds twice; here it is once.)
///
/// If the loss function throws, nothing was added and the window goes on; if backward throws, its
/// gradients are half made, so the window is dropped and the next call starts a new one. With
/// `retry` or `split` the gradients are put back, and the window goes on.
/// @note Host syncs: none; 1 per full window with fp16 (to know whether to step), what the clipper
///       needs (1 for autoclip and zclip, on an accelerator), and 1 for a spike guard.
class TrainingStep {
 public:
  /// @param optimizer must outlive the step; its parameters say on which device autocast runs.
  /// @param options see TrainingStepOptions.
  /// @throws c10::ValueError if the optimizer has no parameters, or others than the model of a private
  ///         gradient stage; c10::NotImplementedError for LBFGS, whose closure runs backward several
  ///         times, and for stages that look at private losses beside such a gradient stage: float16's
  ///         loss scaler, the spike guard, windows of counts.
  explicit TrainingStep(torch::optim::Optimizer& optimizer, TrainingStepOptions options = {});
  /// Several optimizers that share one loss: one norm over all their gradients, and all step or
  /// none.
  /// @throws as above, and c10::ValueError for none, a null pointer or the same one twice.
  explicit TrainingStep(std::vector<torch::optim::Optimizer*> optimizers,
                        TrainingStepOptions options = {});
  TrainingStep(const TrainingStep&) = delete;
  TrainingStep& operator=(const TrainingStep&) = delete;
  ~TrainingStep();

  /// Runs one micro-batch: forward, backward, and the step when the window is full.
  /// @param f returns the loss: a 0-d mean, a `Loss{sum, count}`, or one loss per example [B].
  /// @throws whatever f throws; c10::ValueError for another shape of loss, or if no gradient
  ///         reached a parameter of the optimizers; as `GradientAccumulator::add`.
  template <LossFunction F>
  StepResult operator()(F&& f) {
    start();
    if (options_.gradient) {
      return run_private({.loss_of = [&](auto, auto) -> AnyLoss { return forward(f); }});
    }
    if (options_.retry)
      return run_recovering(
          1, [&](auto, auto) -> AnyLoss { return forward(f); }, false);
    return finish_call(forward(f));
  }

  /// The same with the batch in sight: `f(batch)`. An empty batch counts as a micro-batch that
  /// weighs nothing, and `f` is not called.
  template <Batch B, LossFunction<const B&> F>
  StepResult operator()(const B& batch, F&& f) {
    const int64_t size = batch_size(batch);
    if (recovery_ || options_.gradient) {
      start();
      const auto loss_of = [&](int64_t from, int64_t to) -> AnyLoss {
        const auto whole = [&] { return f(batch); };
        const auto part = [&] { return f(static_cast<const B&>(slice(batch, from, to))); };
        return from == 0 && to == size ? forward(whole) : forward(part);
      };
      if (options_.gradient) {
        PrivateCall call{.size = size, .loss_of = loss_of};
        if constexpr (SelectableBatch<B>) {
          call.loss_of_copies = [&](int64_t from, int64_t to, int64_t example) -> AnyLoss {
            const B copies = select_examples(batch, copies_of(example, to - from));
            return forward([&] { return f(copies); });
          };
        }
        return run_private(call);
      }
      return run_recovering(size, loss_of, options_.split.has_value());
    }
    if (size == 0) return finish_empty_call();
    return (*this)([&] { return f(batch); });
  }

  /// Steps with what the last, partial window holds; nothing happens if it is empty.
  StepResult finish();

  /// Steps that the optimizers made; skipped ones do not count. Drive schedules by this.
  int64_t steps() const { return steps_; }
  /// The accumulation window.
  GradientAccumulator& window() { return window_; }
  /// The loss scaler, or nullptr without fp16.
  LossScaler* scaler() { return scaler_ ? &*scaler_ : nullptr; }

  /// The rule that leaves float16, or nullptr without `Precision::with_fallback`.
  const PrecisionFallback* fallback() const { return fallback_ ? &*fallback_ : nullptr; }

  /// What is known of the sizes that fit, or nullptr without `split`.
  const SizeSearch* sizes() const;

  /// What clips; it has the history of this step.
  Clip& clip() { return options_.clip; }
  /// The spike guard, or nullptr without one.
  SpikeGuard* spike_guard() { return guard_ ? &*guard_ : nullptr; }

  /// The rates of an optimizer, or nullptr without a schedule. Lower a rate, or give a group a
  /// schedule of its own, through this. @throws c10::IndexError if there is no such optimizer.
  LearningRate* learning_rate(size_t optimizer = 0);

  /// Step count, window size, loss scaler, the clipper's history, schedule, weight average, spike guard and
  /// what a private gradient stage has spent. @throws c10::Error inside a window, or while averages are in the model.
  StateDict state_dict() const;
  /// Takes the saved state over. @throws c10::ValueError if something is missing; as
  ///         `DifferentiallyPrivate::load_state_dict`.
  void load_state_dict(const StateDict& state);

 private:
  struct Target {
    torch::optim::Optimizer* optimizer;
    ScaledStep* scaled;  // the same object, or nullptr
  };

  using AnyLoss = std::variant<at::Tensor, Loss>;
  using PartLoss = std::function<AnyLoss(int64_t from, int64_t to)>;
  /// What a micro-batch is to be backpropagated by, and the loss to report.
  struct Counted {
    at::Tensor tensor;  // undefined: the spike guard dropped it
    Loss loss;
  };
  class Recovery;
  /// A call of a step with a private gradient stage.
  struct PrivateCall {
    int64_t size = -1;      // examples; -1: only the losses tell
    PartLoss loss_of = {};  // of the examples [from, to)
    // The same with all of them replaced by one; nothing if that cannot be had.
    std::function<AnyLoss(int64_t from, int64_t to, int64_t example)> loss_of_copies = {};
  };

  template <typename F>
  auto forward(F&& f) {
    // Outermost: it sees what autocast makes of the ops, and ends when the loss is all that is left.
    const auto activations = options_.activations.enter();
    std::optional<Autocast> amp;
    if (const auto dtype = forward_dtype()) amp.emplace(device_, *dtype);
    return f();
  }

  void make_guard(const std::vector<torch::optim::Optimizer*>& optimizers);
  std::optional<at::ScalarType> forward_dtype() const {
    return fallback_ ? fallback_->dtype() : options_.precision.dtype();
  }
  // The scaler, unless there is none or float16 has been left.
  LossScaler* active_scaler() {
    return scaler_ && !(fallback_ && fallback_->fallen_back()) ? &*scaler_ : nullptr;
  }

  void start();
  StepResult finish_call(const at::Tensor& loss);
  StepResult finish_call(Loss loss);
  StepResult finish_call(const Counted& counted);
  StepResult finish_empty_call();
  Counted count(const at::Tensor& loss);
  Counted count(Loss loss);
  // A micro-batch under a private gradient stage.
  StepResult run_private(const PrivateCall& call);
  class PrivateParts;
  static at::Tensor copies_of(int64_t example, int64_t count);
  void check_private() const;
  void drop_private_window();
  // A micro-batch of so many examples, retried and split as the options say.
  StepResult run_recovering(int64_t size, const PartLoss& loss_of, bool may_split);
  StepResult backward(const at::Tensor& counted, const Loss& loss);
  at::Tensor scaled(const at::Tensor& counted);
  StepResult end_of_window(const Loss& loss);
  StepResult apply(const Loss& loss);
  // What the window's gradients must be divided by, loss scale included; starts the next window.
  at::Tensor close_window();
  // Measures the gradients, folds clipping into the divisor, updates the scaler and asks the guard.
  StepResult::Outcome inspect(at::TensorList grads, at::Tensor& divisor, at::Tensor& norm);
  // Whether the guard leaves the micro-batch out; it fills the window then, and weighs nothing.
  bool drop(const Loss& loss);
  // What becomes of a window that is not stepped, after the guard has judged its loss.
  StepResult::Outcome refuse(StepResult::Outcome otherwise);
  // Tells the scaler what all ranks found; true: skip.
  bool found_inf(GradientStats& stats);
  at::Tensor agreed_norm(const at::Tensor& norm);
  void schedule_new_groups();
  void average_waiting();
  void step_all(const std::vector<std::vector<at::Tensor>>& grads, const at::Tensor& divisor);

  std::vector<Target> targets_;
  TrainingStepOptions options_;
  GradientAccumulator window_;
  std::optional<LossScaler> scaler_;
  std::optional<SpikeGuard> guard_;
  std::optional<PrecisionFallback> fallback_;
  std::vector<LearningRate> rates_;     // one per target, or none
  std::unique_ptr<Recovery> recovery_;  // nothing without retry and split
  at::Device device_;
  int64_t steps_ = 0;
  bool average_waits_ = false;  // the last step's weights are still to be averaged
};

}  // namespace torchlore
