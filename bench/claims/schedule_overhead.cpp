// What a learning-rate schedule adds to an optimizer step.
#include <ATen/ops/zeros.h>
#include <torch/optim/adamw.h>

#include <memory>
#include <vector>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "torchlore/schedule/learning_rate.hpp"

namespace torchlore::claims {
namespace {

constexpr int64_t kSteps = 1'000'000;
constexpr double kBarMicroseconds = 5;

/// AdamW with `groups` parameter groups.
struct Task {
  explicit Task(int64_t groups) {
    for (int64_t i = 0; i < groups; ++i) {
      optimizer.add_param_group({{at::zeros({1}).set_requires_grad(true)},
                                 std::make_unique<torch::optim::AdamWOptions>(1e-3)});
    }
  }
  torch::optim::AdamW optimizer{std::vector<torch::optim::OptimizerParamGroup>{},
                                torch::optim::AdamWOptions(1e-3)};
};

struct Setting {
  const char* part;
  int64_t groups;
  const char* text;
  Schedule (*make)();
  bool own;  ///< each group has a schedule of its own
};

void compare(Context& context, const Setting& setting) {
  Task task(setting.groups);
  std::vector<Schedule> schedules;
  for (int64_t i = 0; i < setting.groups; ++i) {
    schedules.push_back(i == 0 || setting.own ? setting.make() : schedules[0]);
  }
  LearningRate rate(task.optimizer, schedules);
  const std::vector<Contender> contenders = {timed("LearningRate::step", [&] { rate.step(); })};
  auto seconds = interleave(contenders, Sampling::of(context));
  for (auto& sample : seconds[0]) sample *= 1e6;
  context.report({.part = setting.part,
                  .setting = setting.text,
                  .baseline = "nothing: the whole call is what a step costs more",
                  .measured = median_estimate(seconds[0]),
                  .unit = "\u00b5s",
                  .bar = kBarMicroseconds});
}

void measure(Context& context) {
  const auto usual = [] { return schedule::warmup(2'000).then(schedule::cosine(kSteps, 0.1)); };
  const auto cycle = [] { return schedule::one_cycle(kSteps); };
  compare(context, {"one_group", 1, "AdamW, 1 group, warmup then cosine", usual, false});
  compare(context,
          {"groups", 100, "AdamW, 100 groups, one schedule: warmup then cosine", usual, false});
  compare(context,
          {"own_schedules", 100,
           "AdamW, 100 groups, each with its own one-cycle, rate and momentum", cycle, true});
}

const bool registered =
    add_claim({.name = "schedule_overhead",
               .group = "schedule",
               .promise = "a learning-rate schedule costs microseconds per step",
               .measure = measure,
               .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
