#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "curves.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore::schedule {
namespace {

/// The phases of a cycle: where each ends (at a fraction of a step, as in PyTorch), and between which
/// levels it runs.
struct Cycle {
  enum Level : size_t { initial, peak, last };
  struct Phase {
    double end;
    Level from, to;
  };
  std::array<Phase, 3> phases = {};
  size_t count = 0;
  bool cosine = true;

  Cycle(int64_t steps, const OneCycleOptions& options)
      : cosine(options.anneal_strategy == AnnealStrategy::cosine) {
    const auto total = static_cast<double>(steps);
    const double rise = options.pct_start * total;
    phases[count++] = {rise - 1, initial, peak};
    if (options.three_phase) phases[count++] = {2 * rise - 2, peak, initial};
    phases[count++] = {total - 1, options.three_phase ? initial : peak, last};
  }

  double operator()(int64_t t, const std::array<double, 3>& levels) const {
    // The cycle ends one step before its length; there it stays.
    const double step = std::min(static_cast<double>(t), phases[count - 1].end);
    double start = 0;
    size_t i = 0;
    for (; i + 1 < count && step > phases[i].end; ++i) start = phases[i].end;
    const double part = (step - start) / (phases[i].end - start);
    const double from = levels[phases[i].from], to = levels[phases[i].to];
    return cosine ? to + (from - to) * detail::half_cosine(part) : from + (to - from) * part;
  }
};

void check(int64_t steps, const OneCycleOptions& options) {
  detail::check_steps("one_cycle", steps);
  check_in_range("schedule::one_cycle: pct_start", options.pct_start, 0,
                 options.three_phase ? 0.5 : 1);
  const double rise = options.pct_start * static_cast<double>(steps);
  TORCH_CHECK_VALUE(rise > 1 || (options.pct_start == 0 && !options.three_phase && steps > 1),
                    "schedule::one_cycle: the rate rises in pct_start (", options.pct_start,
                    ") of ", steps, " steps, which is ", rise,
                    "; it takes more than 1: make the cycle longer, or pct_start larger");
  check_positive("schedule::one_cycle: div_factor", options.div_factor);
  check_positive("schedule::one_cycle: final_div_factor", options.final_div_factor);
  TORCH_CHECK_VALUE(options.base_momentum >= 0 && options.max_momentum < 1 &&
                        options.base_momentum <= options.max_momentum,
                    "schedule::one_cycle: 0 <= base_momentum <= max_momentum < 1 must hold, but "
                    "they are ",
                    options.base_momentum, " and ", options.max_momentum);
}

}  // namespace

Schedule one_cycle(int64_t steps, OneCycleOptions options) {
  check(steps, options);
  const Cycle cycle(steps, options);
  const double initial = 1 / options.div_factor;
  const std::array rates{initial, 1.0, initial / options.final_div_factor};
  const std::array momenta{options.max_momentum, options.base_momentum, options.max_momentum};
  const double rise = options.pct_start * static_cast<double>(steps);
  Schedule::Curve curve{.factor = [=](int64_t t) { return cycle(t, rates); },
                        .steps = steps,
                        .warmup = std::max<int64_t>(static_cast<int64_t>(rise) - 1, 0)};
  if (options.cycle_momentum) curve.momentum = [=](int64_t t) { return cycle(t, momenta); };
  return Schedule(std::move(curve));
}

}  // namespace torchlore::schedule
