#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "torchlore/core/state_dict.hpp"
#include "torchlore/schedule/schedule.hpp"

namespace torch::optim {
class Optimizer;
}

namespace torchlore {

/// Applies a `Schedule` to an optimizer: writes base rate × factor into its parameter groups.
///
/// ```cpp
/// namespace schedule = torchlore::schedule;
/// torchlore::LearningRate rate(optimizer, schedule::warmup(200).then(schedule::cosine(10'000)));
/// for (auto& batch : *loader) {
///   …
///   if (scaler.step(optimizer)) rate.step();  // after real steps only
/// }
/// ```
/// Works with every optimizer whose options have `get_lr` and `set_lr`: all of LibTorch's and
/// torchlore's fused ones. Each group keeps its own base rate, the one it had when it was first
/// seen; a group added later follows the last group's schedule. Rates depend on the number of steps
/// and the base rates alone, so a resumed run goes on bit for bit.
/// @note O(groups) per step; no tensors, no host syncs.
class LearningRate {
 public:
  /// Takes the present rates as base rates, and writes those of the first step.
  /// @param optimizer must outlive this.
  /// @param schedule  for all groups.
  /// @throws c10::ValueError if the schedule writes momentum and a group has none (Adagrad, LBFGS),
  ///         or for a factor that is negative or not finite.
  explicit LearningRate(torch::optim::Optimizer& optimizer,
                        Schedule schedule = schedule::constant());
  /// One schedule per group. @throws as above, and c10::ValueError for another number of them.
  LearningRate(torch::optim::Optimizer& optimizer, std::vector<Schedule> schedules);

  LearningRate(const LearningRate&) = delete;
  LearningRate& operator=(const LearningRate&) = delete;
  /// Takes the other's optimizer and state over.
  LearningRate(LearningRate&&) noexcept = default;
  /// As the move constructor.
  LearningRate& operator=(LearningRate&&) noexcept = default;
  ~LearningRate() = default;

  /// Counts a step that the optimizer made, and writes the rates of the next one.
  /// @throws c10::ValueError if a group was removed, and as the constructor; nothing is written or
  ///         counted then.
  void step();
  /// Writes the rates of the next step again: after a group was added, so that already its first
  /// step is scheduled, or after someone else wrote rates. Throws as `step`.
  void update();

  /// Throws what the constructor would throw for this optimizer and schedule; writes nothing.
  static void check(const torch::optim::Optimizer& optimizer, const Schedule& schedule);

  /// Groups that have a base rate; fewer than the optimizer's after one was added.
  size_t groups() const { return base_rates_.size(); }
  /// Steps counted.
  int64_t steps() const { return steps_; }
  /// The rate that the next step takes. @throws c10::IndexError if there is no such group.
  double rate(size_t group = 0) const;
  /// The rates of all groups.
  std::vector<double> rates() const;
  /// What a group's factors multiply; throws as `rate`.
  double base_rate(size_t group = 0) const;
  /// Replaces a group's base rate, and writes. @param rate finite, 0 or above.
  void set_base_rate(size_t group, double rate);
  /// Multiplies the base rates of all groups, and writes. @param factor finite, above 0.
  void scale(double factor);
  /// Replaces a group's schedule, and writes; throws as the constructor, and as `rate`.
  void set_schedule(size_t group, Schedule schedule);

  /// Steps and base rates; the schedules are code.
  StateDict state_dict() const;
  /// Takes the saved state over, and writes the rates.
  /// @throws c10::ValueError if something is missing or the number of groups is another.
  void load_state_dict(const StateDict& state);
  /// Throws what `load_state_dict` would; changes nothing.
  void check_state_dict(const StateDict& state) const;

 private:
  void take_new_groups();
  bool follows_the_one_before(size_t group) const;
  void check(int64_t step) const;
  void write(int64_t step);
  void check_group(size_t group) const;

  torch::optim::Optimizer* optimizer_;
  std::vector<Schedule> schedules_;  // one per group, as the base rates
  std::vector<double> base_rates_;
  std::vector<double> factors_;  // of the rates that are being written
  int64_t steps_ = 0;
};

}  // namespace torchlore
