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

/// Options of `cosine_restarts`.
struct CosineRestartsOptions {
  int64_t multiplier = 1;   ///< each cycle is so many times as long as the one before; 1 or more
  double min_factor = 0.0;  ///< at the end of each cycle, in [0, 1]
};

/// Cycles of half a cosine from 1 down to `min_factor`; endless. PyTorch's
/// CosineAnnealingWarmRestarts(T_0, T_mult). @param steps of the first cycle, 1 or more.
Schedule cosine_restarts(int64_t steps, CosineRestartsOptions options = {});

/// Options of `linear`.
struct LinearOptions {
  double start_factor = 1.0;  ///< of the first step, in [0, 1]
  double end_factor = 0.0;    ///< reached at t = steps, in [0, 1]
};

/// A straight line. PyTorch's LinearLR. @param steps 1 or more.
Schedule linear(int64_t steps, LinearOptions options = {});

/// Options of `polynomial`.
struct PolynomialOptions {
  double power = 1.0;       ///< above 0
  double end_factor = 0.0;  ///< reached at t = steps, in [0, 1]
};

/// end + (1 - end) · (1 - t / steps)^power. PyTorch's PolynomialLR. @param steps 1 or more.
Schedule polynomial(int64_t steps, PolynomialOptions options = {});

/// gamma^t; endless. PyTorch's ExponentialLR. @param gamma above 0; above 1 the rate grows.
Schedule exponential(double gamma);

/// Multiplied by gamma every `every` steps; endless. PyTorch's StepLR.
/// @param every 1 or more. @param gamma above 0.
Schedule step(int64_t every, double gamma = 0.1);

/// Multiplied by gamma at each milestone; endless. PyTorch's MultiStepLR.
/// @param milestones steps, 1 or more, increasing; at least one. @param gamma above 0.
Schedule multi_step(std::vector<int64_t> milestones, double gamma = 0.1);

/// 1 / sqrt(1 + t / timescale); endless. After `warmup(n)` mostly `inverse_sqrt(n)`: the two together
/// are the Transformer's schedule. @param timescale 1 or more.
/// Source: Vaswani et al. (2017), arXiv:1706.03762, section 5.3.
Schedule inverse_sqrt(int64_t timescale);

/// How a decay falls from 1 to the minimum m; u runs from 0 to 1.
enum class DecayShape : uint8_t {
  linear,            ///< m + (1 - m) · (1 - u)
  cosine,            ///< m + (1 - m) · (1 + cos πu) / 2
  exponential,       ///< m^u; m must be above 0
  one_minus_sqrt,    ///< m + (1 - m) · (1 - √u)
  one_minus_square,  ///< m + (1 - m) · (1 - u²)
  inverse,           ///< 1 / (u / m + 1 - u): the rate's reciprocal is a line; m must be above 0
};

/// Options of `decay`.
struct DecayOptions {
  DecayShape shape = DecayShape::one_minus_sqrt;  ///< see DecayShape
  double min_factor = 0.0;                        ///< reached at t = steps, in [0, 1]
};

/// The last part of WSD alone: from 1 to the minimum. Continues a run that was trained at a stable
/// rate. @param steps 1 or more.
Schedule decay(int64_t steps, DecayOptions options = {});

/// Options of `wsd`.
struct WsdOptions {
  int64_t warmup = 0;                             ///< steps of the warm-up, 0 or more
  int64_t decay = 0;                              ///< steps of the decay, 0 or more
  DecayShape shape = DecayShape::one_minus_sqrt;  ///< of the decay
  double min_factor = 0.0;                        ///< at its end, in [0, 1]
};

/// Warm-up, stable, decay: a linear warm-up, the base rate, and a decay at the end.
/// @param steps of all three together; not less than warm-up and decay.
/// Source: Hu et al. (2024), arXiv:2404.06395; shapes: Hägele et al. (2024), arXiv:2405.18392 (1 - √u,
/// 1 - u²), Wen et al. (2024), arXiv:2410.05192 (inverse).
Schedule wsd(int64_t steps, WsdOptions options);

/// How one-cycle's phases run.
enum class AnnealStrategy : uint8_t {
  cosine,  ///< half a cosine
  linear,  ///< a straight line
};

/// Options of `one_cycle`; names and defaults are those of PyTorch's OneCycleLR.
struct OneCycleOptions {
  double pct_start = 0.3;  ///< share of the steps in which the rate rises; in [0, 1]
  AnnealStrategy anneal_strategy = AnnealStrategy::cosine;  ///< of every phase
  bool cycle_momentum = true;     ///< momentum (or the first beta) falls while the rate rises
  double base_momentum = 0.85;    ///< at the peak of the rate
  double max_momentum = 0.95;     ///< at start and end
  double div_factor = 25.0;       ///< the first factor is 1 / div_factor; above 0
  double final_div_factor = 1e4;  ///< the last is 1 / div_factor / final_div_factor; above 0
  bool three_phase = false;       ///< back to the first factor as fast as it rose, then to the last
};

/// Up to the base rate and far down again, momentum the other way. PyTorch's OneCycleLR, whose
/// max_lr is the base rate here. @param steps of the whole cycle; PyTorch's total_steps.
/// Source: Smith, Topin (2018), arXiv:1708.07120.
Schedule one_cycle(int64_t steps, OneCycleOptions options = {});

/// Any function of t, as PyTorch's LambdaLR; it is called with 0 … steps.
/// @param factor stored and called later: capture by value.
Schedule lambda(Schedule::Function factor, int64_t steps = Schedule::kEndless);

}  // namespace schedule
}  // namespace torchlore
