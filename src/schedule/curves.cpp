#include "curves.hpp"

#include <cmath>
#include <numbers>
#include <utility>

#include "torchlore/core/error.hpp"

namespace torchlore::schedule {

using detail::share;

namespace detail {

void check_steps(const char* function, int64_t steps) {
  TORCH_CHECK_VALUE(steps >= 1, "schedule::", function, ": steps must be 1 or more, but is ", steps,
                    "; where it is what a warm-up leaves of a run, the run is too short for that "
                    "warm-up");
}

void check_factor(const char* name, double value) {
  TORCH_CHECK_VALUE(value >= 0 && value <= 1, name,
                    " must be a factor of the base rate in [0, 1], but is ", value);
}

double half_cosine(double part) { return (1 + std::cos(std::numbers::pi * part)) / 2; }

}  // namespace detail

Schedule warmup(int64_t steps, WarmupOptions options) {
  detail::check_steps("warmup", steps);
  const double start = options.start_factor.value_or(1 / (static_cast<double>(steps) + 1));
  detail::check_factor("schedule::warmup: start_factor", start);
  Schedule::Function factor;
  switch (options.shape) {
    case WarmupShape::linear:
      factor = [=](int64_t t) { return start + (1 - start) * share(t, steps); };
      break;
    case WarmupShape::constant:
      factor = [=](int64_t t) { return t < steps ? start : 1.0; };
      break;
    case WarmupShape::exponential:
      TORCH_CHECK_VALUE(start > 0,
                        "schedule::warmup: an exponential one cannot start at factor 0, since it "
                        "rises by equal ratios; give a start_factor above 0");
      factor = [=](int64_t t) { return std::pow(start, 1 - share(t, steps)); };
      break;
  }
  return Schedule({.factor = std::move(factor), .steps = steps, .warmup = steps});
}

Schedule constant(int64_t steps, double factor) {
  detail::check_steps("constant", steps);
  detail::check_factor("schedule::constant: factor", factor);
  return Schedule({.factor = [=](int64_t) { return factor; }, .steps = steps});
}

Schedule cosine(int64_t steps, double min_factor) {
  detail::check_steps("cosine", steps);
  detail::check_factor("schedule::cosine: min_factor", min_factor);
  return Schedule({.factor =
                       [=](int64_t t) {
                         const double part = detail::half_cosine(share(t, steps));
                         return min_factor + (1 - min_factor) * part;
                       },
                   .steps = steps});
}

Schedule lambda(Schedule::Function factor, int64_t steps) {
  return Schedule({.factor = std::move(factor), .steps = steps});
}

}  // namespace torchlore::schedule
