#include "torchlore/schedule/schedule.hpp"

#include <algorithm>
#include <utility>

#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

/// The momentum of two schedules of which at least one has one.
Schedule::Function either_momentum(const Schedule& a, const Schedule& b) {
  if (!a.has_momentum() && !b.has_momentum()) return nullptr;
  return [of = a.has_momentum() ? a : b](int64_t t) { return *of.momentum(t); };
}

}  // namespace

Schedule::Schedule(Curve curve) {
  TORCH_CHECK_VALUE(curve.factor != nullptr,
                    "a schedule needs a function for its factor, but got none");
  check_count("the length of a schedule", curve.steps);
  curve_ = std::make_shared<const Curve>(std::move(curve));
}

double Schedule::operator()(int64_t step) const {
  TORCH_CHECK_VALUE(step >= 0, "a schedule begins at step 0, but was asked for step ", step);
  return curve_->factor(std::min(step, curve_->steps));
}

std::optional<double> Schedule::momentum(int64_t step) const {
  TORCH_CHECK_VALUE(step >= 0, "a schedule begins at step 0, but was asked for step ", step);
  if (!has_momentum()) return std::nullopt;
  return curve_->momentum(std::min(step, curve_->steps));
}

Schedule Schedule::then(const Schedule& next) const {
  TORCH_CHECK_VALUE(steps() != kEndless,
                    "this schedule never ends, so nothing can follow it; give it a length by "
                    "until(steps) before then(…)");
  const auto first = *this;
  const auto at = steps();
  Function momentum;
  // Outside its own steps the one that has momentum holds its edge.
  if (has_momentum() && next.has_momentum()) {
    momentum = [=](int64_t t) { return *(t < at ? first.momentum(t) : next.momentum(t - at)); };
  } else if (has_momentum()) {
    momentum = [=](int64_t t) { return *first.momentum(t); };
  } else if (next.has_momentum()) {
    momentum = [=](int64_t t) { return *next.momentum(std::max<int64_t>(t - at, 0)); };
  }
  // A warm-up of several parts, or one that is followed by another.
  const bool rising = warmup_steps() == at;
  return Schedule({.factor = [=](int64_t t) { return t < at ? first(t) : next(t - at); },
                   .steps = next.steps() > kEndless - at ? kEndless : at + next.steps(),
                   .warmup = warmup_steps() + (rising ? next.warmup_steps() : 0),
                   .momentum = std::move(momentum)});
}

Schedule Schedule::until(int64_t steps) const {
  check_count("until(steps) of a schedule", steps);
  TORCH_CHECK_VALUE(steps >= warmup_steps(), "until(", steps,
                    ") would end the schedule inside its warm-up of ", warmup_steps(),
                    " steps; make it longer, or the warm-up shorter");
  Curve curve{.factor = *this, .steps = steps, .warmup = warmup_steps()};
  if (has_momentum()) {
    curve.momentum = [whole = *this](int64_t t) { return *whole.momentum(t); };
  }
  return Schedule(std::move(curve));
}

Schedule operator*(const Schedule& a, const Schedule& b) {
  TORCH_CHECK_VALUE(!a.has_momentum() || !b.has_momentum(),
                    "both schedules of a product write momentum; make one of them without, for "
                    "one_cycle by .cycle_momentum = false");
  return Schedule({.factor = [=](int64_t t) { return a(t) * b(t); },
                   .steps = std::max(a.steps(), b.steps()),
                   .warmup = std::max(a.warmup_steps(), b.warmup_steps()),
                   .momentum = either_momentum(a, b)});
}

}  // namespace torchlore
