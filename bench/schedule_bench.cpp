// What a schedule adds to a step: LearningRate::step beside the formula written into the loop by hand.
#include <ATen/Functions.h>
#include <benchmark/benchmark.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <memory>
#include <numbers>
#include <vector>

#include "torchlore/schedule/learning_rate.hpp"

namespace {

namespace schedule = torchlore::schedule;
using torchlore::LearningRate;
using torchlore::Schedule;

/// AdamW with one small parameter per group.
struct Groups {
  explicit Groups(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      optimizer.add_param_group(
          {{at::zeros({1}).requires_grad_()}, std::make_unique<torch::optim::AdamWOptions>(1e-3)});
    }
  }
  torch::optim::AdamW optimizer{std::vector<torch::optim::OptimizerParamGroup>{},
                                torch::optim::AdamWOptions(1e-3)};
};

void by_hand(benchmark::State& state) {
  Groups groups(state.range(0));
  double t = 0;
  for (auto _ : state) {
    const double factor = 0.5 * (1 + std::cos(std::numbers::pi * t / 1e6));
    for (auto& group : groups.optimizer.param_groups()) group.options().set_lr(1e-3 * factor);
    ++t;
  }
}

void one_schedule(benchmark::State& state, const Schedule& schedule) {
  Groups groups(state.range(0));
  LearningRate rate(groups.optimizer, schedule);
  for (auto _ : state) rate.step();
}

/// As many schedules as groups, none a copy of another.
void own_schedules(benchmark::State& state, Schedule (*make)()) {
  Groups groups(state.range(0));
  std::vector<Schedule> schedules;
  for (int64_t i = 0; i < state.range(0); ++i) schedules.push_back(make());
  LearningRate rate(groups.optimizer, std::move(schedules));
  for (auto _ : state) rate.step();
}

Schedule usual() { return schedule::warmup(2'000).then(schedule::cosine(1'000'000, 0.1)); }
Schedule cycle() { return schedule::one_cycle(1'000'000); }

BENCHMARK(by_hand)->Arg(1)->Arg(100);
BENCHMARK_CAPTURE(one_schedule, cosine, schedule::cosine(1'000'000))->Arg(1)->Arg(100);
BENCHMARK_CAPTURE(one_schedule, warmup_cosine, usual())->Arg(1)->Arg(100);
BENCHMARK_CAPTURE(one_schedule, one_cycle, cycle())->Arg(1)->Arg(100);
BENCHMARK_CAPTURE(own_schedules, warmup_cosine, usual)->Arg(100);
BENCHMARK_CAPTURE(own_schedules, one_cycle, cycle)->Arg(100);

}  // namespace

BENCHMARK_MAIN();
