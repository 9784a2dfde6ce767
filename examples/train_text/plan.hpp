#pragma once

#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include "plain_side.hpp"
#include "torchlore_side.hpp"

/// What the program decides by a short trial on the machine it runs on.
namespace text {

/// The median time of `f` in seconds, after two calls to warm up.
template <typename F>
double median_seconds(const Run& run, F&& f) {
  std::vector<double> times;
  for (int i = 0; i < 7; ++i) {
    run.synchronize();
    const double begin = monotonic_seconds();
    f();
    run.synchronize();
    if (i >= 2) times.push_back(monotonic_seconds() - begin);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// bf16 where the model's widest matrix product is faster in it: a CPU without bfloat16
/// instructions emulates them, and loses.
inline std::string faster_precision(const Run& run) {
  const auto& s = run.settings;
  const auto seconds = [&](at::ScalarType dtype) {
    const auto options = at::TensorOptions(run.device()).dtype(dtype);
    const auto x = at::randn({s.batch * s.context, s.width}, options);
    const auto w = at::randn({s.width, 4 * s.width}, options);
    return median_seconds(run, [&] { at::mm(x, w); });
  };
  const double ratio = seconds(at::kFloat) / seconds(at::kBFloat16);
  const std::string choice = ratio > 1 ? "bf16" : "fp32";
  fmt::print("A matrix product is {:.1f} times as fast in bf16 here: torchlore trains in {}.\n",
             ratio, choice);
  return choice;
}

template <typename Side>
double seconds_per_step(const Run& run) {
  Record record;
  Side side(run, record);
  return median_seconds(run, [&] { side.step(0); });
}

/// The steps asked for, or as many as both sides can make in the minutes.
inline int64_t steps_that_fit(const Run& run) {
  const auto& s = run.settings;
  const double both = seconds_per_step<PlainSide>(run) + seconds_per_step<TorchloreSide>(run);
  const auto fit = std::max<int64_t>(1, static_cast<int64_t>(s.minutes * 60 / both));
  if (fit < s.steps) {
    fmt::print("{} of {} steps fit into --minutes {}.\n", fit, s.steps, s.minutes);
  }
  return std::min(fit, s.steps);
}

}  // namespace text
