#include "curves.hpp"

#include <algorithm>
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
  return decay(steps, {.shape = DecayShape::cosine, .min_factor = min_factor});
}

Schedule cosine_restarts(int64_t steps, CosineRestartsOptions options) {
  detail::check_steps("cosine_restarts", steps);
  detail::check_factor("schedule::cosine_restarts: min_factor", options.min_factor);
  check_count("schedule::cosine_restarts: multiplier", options.multiplier);
  return Schedule({.factor = [=, low = options.min_factor, by = options.multiplier](int64_t t) {
    int64_t length = steps;
    if (by == 1) t %= steps;
    while (t >= length) {  // as often as the cycles doubled, at least
      t -= length;
      length = length > Schedule::kEndless / by ? Schedule::kEndless : length * by;
    }
    return low + (1 - low) * detail::half_cosine(share(t, length));
  }});
}

Schedule linear(int64_t steps, LinearOptions options) {
  detail::check_steps("linear", steps);
  detail::check_factor("schedule::linear: start_factor", options.start_factor);
  detail::check_factor("schedule::linear: end_factor", options.end_factor);
  return Schedule(
      {.factor = [=, from = options.start_factor, to = options.end_factor](
                     int64_t t) { return t == steps ? to : from + (to - from) * share(t, steps); },
       .steps = steps});
}

Schedule polynomial(int64_t steps, PolynomialOptions options) {
  detail::check_steps("polynomial", steps);
  detail::check_factor("schedule::polynomial: end_factor", options.end_factor);
  check_positive("schedule::polynomial: power", options.power);
  return Schedule({.factor =
                       [=](int64_t t) {
                         const double left = std::pow(1 - share(t, steps), options.power);
                         return options.end_factor + (1 - options.end_factor) * left;
                       },
                   .steps = steps});
}

Schedule exponential(double gamma) {
  check_positive("schedule::exponential: gamma", gamma);
  return Schedule({.factor = [=](int64_t t) { return std::pow(gamma, static_cast<double>(t)); }});
}

Schedule step(int64_t every, double gamma) {
  check_count("schedule::step: every", every);
  check_positive("schedule::step: gamma", gamma);
  return Schedule(
      {.factor = [=](int64_t t) { return std::pow(gamma, static_cast<double>(t / every)); }});
}

Schedule multi_step(std::vector<int64_t> milestones, double gamma) {
  TORCH_CHECK_VALUE(!milestones.empty(),
                    "schedule::multi_step needs at least one milestone; use constant() for none");
  check_positive("schedule::multi_step: gamma", gamma);
  int64_t before = 0;
  for (const auto milestone : milestones) {
    TORCH_CHECK_VALUE(milestone > before,
                      "schedule::multi_step: milestones must be 1 or more and "
                      "increase, but ",
                      milestone, " follows ", before);
    before = milestone;
  }
  return Schedule({.factor = [=, at = std::move(milestones)](int64_t t) {
    const auto passed = std::upper_bound(at.begin(), at.end(), t) - at.begin();
    return std::pow(gamma, static_cast<double>(passed));
  }});
}

Schedule inverse_sqrt(int64_t timescale) {
  check_count("schedule::inverse_sqrt: timescale", timescale);
  return Schedule({.factor = [=](int64_t t) { return 1 / std::sqrt(1 + share(t, timescale)); }});
}

Schedule lambda(Schedule::Function factor, int64_t steps) {
  return Schedule({.factor = std::move(factor), .steps = steps});
}

}  // namespace torchlore::schedule
