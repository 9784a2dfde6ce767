#include <cmath>
#include <optional>

#include "curves.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore::schedule {
namespace {

/// What the shape is at part `u`, for the minimum `low`.
double shape_at(DecayShape shape, double u, double low) {
  const auto above = [&](double part) { return low + (1 - low) * part; };
  switch (shape) {
    case DecayShape::linear:
      return above(1 - u);
    case DecayShape::cosine:
      return above(detail::half_cosine(u));
    case DecayShape::exponential:
      return std::pow(low, u);
    case DecayShape::one_minus_sqrt:
      return above(1 - std::sqrt(u));
    case DecayShape::one_minus_square:
      return above(1 - u * u);
    case DecayShape::inverse:
      return 1 / (u / low + 1 - u);
  }
  return 1;
}

void check_shape(const char* function, DecayShape shape, double low) {
  const bool ratio = shape == DecayShape::exponential || shape == DecayShape::inverse;
  TORCH_CHECK_VALUE(!ratio || low > 0, "schedule::", function, ": an ",
                    shape == DecayShape::inverse ? "inverse" : "exponential",
                    " decay never reaches the min_factor 0; give one above 0, as in 0.01");
}

}  // namespace

Schedule decay(int64_t steps, DecayOptions options) {
  detail::check_steps("decay", steps);
  detail::check_factor("schedule::decay: min_factor", options.min_factor);
  check_shape("decay", options.shape, options.min_factor);
  return Schedule({.factor =
                       [=](int64_t t) {
                         return shape_at(options.shape, detail::share(t, steps),
                                         options.min_factor);
                       },
                   .steps = steps});
}

Schedule wsd(int64_t steps, WsdOptions options) {
  detail::check_steps("wsd", steps);
  TORCH_CHECK_VALUE(options.warmup >= 0 && options.decay >= 0,
                    "schedule::wsd: warmup and decay must be 0 or more steps, but are ",
                    options.warmup, " and ", options.decay);
  detail::check_factor("schedule::wsd: min_factor", options.min_factor);
  check_shape("wsd", options.shape, options.min_factor);
  const auto stable = steps - options.warmup - options.decay;
  TORCH_CHECK_VALUE(stable >= 0, "schedule::wsd: ", steps,
                    " steps are fewer than those of warmup (", options.warmup, ") and decay (",
                    options.decay, "); give more steps, or make the two shorter");
  std::optional<Schedule> whole;
  const auto add = [&](const Schedule& part) { whole = whole ? whole->then(part) : part; };
  if (options.warmup > 0) add(warmup(options.warmup));
  if (stable > 0) add(constant(stable));
  if (options.decay > 0) {
    add(decay(options.decay, {.shape = options.shape, .min_factor = options.min_factor}));
  }
  return *whole;
}

}  // namespace torchlore::schedule
