#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

namespace torchlore {

/// A learning-rate schedule: a function from the optimizer steps made so far to a factor of the base
/// rate. The base rate is the one that the optimizer was made with, and usually the peak (factor 1).
///
/// A small value without state: it is copied freely, knows no optimizer, and is made by the
/// functions in `schedule::`. `LearningRate` applies it.
/// ```cpp
/// const auto s = torchlore::schedule::warmup(200).then(torchlore::schedule::cosine(10'000));
/// s(0);       // 1/201, the factor of the very first step
/// s(200);     // 1
/// s.steps();  // 10'200; from there on it stays where it is
/// ```
class Schedule {
 public:
  /// A factor, or a momentum, at a step.
  using Function = std::function<double(int64_t step)>;
  /// The length of a schedule that does not end.
  static constexpr int64_t kEndless = std::numeric_limits<int64_t>::max();

  /// What a schedule is made of; use the functions in `schedule::`.
  struct Curve {
    Function factor = nullptr;    ///< defined on 0 … `steps`
    int64_t steps = kEndless;     ///< its length, after which `factor(steps)` holds
    int64_t warmup = 0;           ///< how many of its first steps are a warm-up
    Function momentum = nullptr;  ///< none: momentum is left alone
  };
  /// Stores the curve. @throws c10::ValueError unless `factor` is callable and `steps` >= 1.
  explicit Schedule(Curve curve);

  /// The factor of the base rate for the step that follows `step` steps.
  /// @param step 0 or more. @throws c10::ValueError if it is negative.
  double operator()(int64_t step) const;
  /// The momentum for that step (SGD, RMSprop) or the first beta (Adam, AdamW), or nothing if the
  /// schedule leaves it alone; throws as above.
  std::optional<double> momentum(int64_t step) const;
  /// Whether the schedule writes momentum.
  bool has_momentum() const { return curve_->momentum != nullptr; }

  /// Its length; `kEndless` if it does not end. Afterwards the last factor holds.
  int64_t steps() const { return curve_->steps; }
  /// How many of its first steps are a warm-up.
  int64_t warmup_steps() const { return curve_->warmup; }

  /// This schedule, and after its last step `next` from its own first one.
  /// @throws c10::ValueError if this one is endless.
  Schedule then(const Schedule& next) const;
  /// The same with another length: cut, or held at its last factor.
  /// @throws c10::ValueError unless steps >= 1, or if it would end inside its warm-up.
  Schedule until(int64_t steps) const;
  /// The factors multiplied, as long as the longer one.
  /// @throws c10::ValueError if both write momentum.
  friend Schedule operator*(const Schedule& a, const Schedule& b);

  /// Whether both are copies of one schedule (not whether their factors agree).
  bool same_as(const Schedule& other) const { return curve_ == other.curve_; }

 private:
  std::shared_ptr<const Curve> curve_;
};

/// Functions that make schedules. All factors are relative to the base rate; `t` is the number of
/// steps made before. What lies in a range is checked: c10::ValueError names the value.
namespace schedule {

/// How a warm-up rises.
enum class WarmupShape : uint8_t {
  linear,       ///< in equal steps
  constant,     ///< stays at the start factor, then jumps to 1
  exponential,  ///< by equal ratios; the start factor must be above 0
};

/// Options of `warmup`.
struct WarmupOptions {
  /// The factor of the first step, in [0, 1]. Default: 1 / (steps + 1), so that no step is made at
  /// rate 0 and none twice at the full rate.
  std::optional<double> start_factor = std::nullopt;
  WarmupShape shape = WarmupShape::linear;  ///< see WarmupShape
};

/// Rises from the start factor to 1, reached at t = steps. @param steps 1 or more.
/// PyTorch's LinearLR(start_factor) and ConstantLR(factor).
Schedule warmup(int64_t steps, WarmupOptions options = {});

/// One factor. @param steps its length, 1 or more; default: endless. @param factor in [0, 1].
Schedule constant(int64_t steps = Schedule::kEndless, double factor = 1.0);

/// Half a cosine from 1 down to `min_factor`, reached at t = steps, where it stays. (PyTorch's
/// CosineAnnealingLR, which rises again after T_max.)
/// @param steps 1 or more. @param min_factor in [0, 1]: eta_min over the base rate.
/// Source: Loshchilov, Hutter (2017), arXiv:1608.03983.
Schedule cosine(int64_t steps, double min_factor = 0.0);

/// Any function of t, as PyTorch's LambdaLR; it is called with 0 … steps.
/// @param factor stored and called later: capture by value.
Schedule lambda(Schedule::Function factor, int64_t steps = Schedule::kEndless);

}  // namespace schedule
}  // namespace torchlore
