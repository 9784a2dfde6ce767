#include "torchlore/schedule/learning_rate.hpp"

#include <ATen/ops/empty.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "momentum.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using torch::optim::Optimizer;

void check_momentum(const Optimizer& optimizer, size_t group, const Schedule& schedule) {
  TORCH_CHECK_VALUE(!schedule.has_momentum() ||
                        schedule::detail::has_momentum(optimizer.param_groups()[group].options()),
                    "the schedule of group ", group,
                    " writes momentum, but the group's optimizer has neither momentum nor betas; "
                    "make the schedule without, for one_cycle by .cycle_momentum = false");
}

double check_factor(const Schedule& schedule, size_t group, int64_t step) {
  const double factor = schedule(step);
  TORCH_CHECK_VALUE(std::isfinite(factor) && factor >= 0, "the schedule of group ", group,
                    " has the factor ", factor, " at step ", step,
                    "; factors must be finite and 0 or above");
  return factor;
}

}  // namespace

LearningRate::LearningRate(Optimizer& optimizer, Schedule schedule)
    : optimizer_(&optimizer),
      schedules_(std::max<size_t>(optimizer.param_groups().size(), 1), std::move(schedule)) {
  update();
}

LearningRate::LearningRate(Optimizer& optimizer, std::vector<Schedule> schedules)
    : optimizer_(&optimizer), schedules_(std::move(schedules)) {
  const auto groups = optimizer.param_groups().size();
  TORCH_CHECK_VALUE(schedules_.size() == groups && groups > 0, "the optimizer has ", groups,
                    " parameter groups, but there are ", schedules_.size(),
                    " schedules; give one per group, or a single one for all");
  update();
}

void LearningRate::check(const Optimizer& optimizer, const Schedule& schedule) {
  check_factor(schedule, 0, 0);
  for (size_t g = 0; g < optimizer.param_groups().size(); ++g) {
    check_momentum(optimizer, g, schedule);
  }
}

void LearningRate::step() {
  take_new_groups();
  write(steps_ + 1);
  ++steps_;
}

void LearningRate::update() {
  take_new_groups();
  write(steps_);
}

void LearningRate::take_new_groups() {
  auto& groups = optimizer_->param_groups();
  TORCH_CHECK_VALUE(groups.size() >= base_rates_.size(), "the optimizer has ", groups.size(),
                    " parameter groups left of ", base_rates_.size(),
                    "; make a new LearningRate after removing groups");
  for (size_t g = base_rates_.size(); g < groups.size(); ++g) {
    const auto& schedule = schedules_[std::min(g, schedules_.size() - 1)];
    check_momentum(*optimizer_, g, schedule);
    const double rate = groups[g].options().get_lr();
    if (g >= schedules_.size()) schedules_.push_back(Schedule(schedule));
    base_rates_.push_back(rate);
  }
}

bool LearningRate::follows_the_one_before(size_t group) const {
  return group > 0 && schedules_[group].same_as(schedules_[group - 1]);
}

void LearningRate::check(int64_t step) const {
  for (size_t g = 0; g < base_rates_.size(); ++g) {
    if (!follows_the_one_before(g)) check_factor(schedules_[g], g, step);
  }
}

void LearningRate::write(int64_t step) {
  auto& groups = optimizer_->param_groups();
  factors_.resize(groups.size());
  // All first: after a bad factor nothing has been written.
  for (size_t g = 0; g < groups.size(); ++g) {
    factors_[g] =
        follows_the_one_before(g) ? factors_[g - 1] : check_factor(schedules_[g], g, step);
  }
  std::optional<double> momentum;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (!follows_the_one_before(g)) momentum = schedules_[g].momentum(step);
    auto& options = groups[g].options();
    options.set_lr(base_rates_[g] * factors_[g]);
    if (momentum) *schedule::detail::momentum_of(options) = *momentum;
  }
}

void LearningRate::check_group(size_t group) const {
  TORCH_CHECK_INDEX(group < optimizer_->param_groups().size(), "there is no parameter group ",
                    group, "; the optimizer has ", optimizer_->param_groups().size());
}

double LearningRate::rate(size_t group) const {
  check_group(group);
  return optimizer_->param_groups()[group].options().get_lr();
}

std::vector<double> LearningRate::rates() const {
  std::vector<double> all;
  for (const auto& group : optimizer_->param_groups()) all.push_back(group.options().get_lr());
  return all;
}

double LearningRate::base_rate(size_t group) const {
  check_group(group);
  // A group that was added a moment ago still has it.
  return group < base_rates_.size() ? base_rates_[group] : rate(group);
}

void LearningRate::set_base_rate(size_t group, double rate) {
  check_group(group);
  check_not_negative("a base rate", rate);
  take_new_groups();
  base_rates_[group] = rate;
  write(steps_);
}

void LearningRate::scale(double factor) {
  check_positive("the factor of LearningRate::scale", factor);
  take_new_groups();
  for (auto& rate : base_rates_) rate *= factor;
  write(steps_);
}

void LearningRate::set_schedule(size_t group, Schedule schedule) {
  check_group(group);
  check_momentum(*optimizer_, group, schedule);
  check_factor(schedule, group, steps_);
  take_new_groups();
  schedules_[group] = std::move(schedule);
  write(steps_);
}

StateDict LearningRate::state_dict() const {
  const auto rates = at::empty({static_cast<int64_t>(base_rates_.size())}, at::kDouble);
  std::copy(base_rates_.begin(), base_rates_.end(), rates.mutable_data_ptr<double>());
  return {{"steps", state_value(steps_)}, {"base_rates", rates}};
}

void LearningRate::check_state_dict(const StateDict& state) const {
  const auto steps = state_int(state, "steps");
  TORCH_CHECK_VALUE(steps >= 0, "'steps' of the saved state must be 0 or more, but is ", steps);
  const auto rates = state.find("base_rates");
  TORCH_CHECK_VALUE(rates != state.end(),
                    "the saved state has no 'base_rates'; is it one of a LearningRate?");
  const auto groups = static_cast<int64_t>(optimizer_->param_groups().size());
  TORCH_CHECK_VALUE(rates->second.dim() == 1 && rates->second.numel() == groups,
                    "the saved state has the base rates of ", rates->second.numel(),
                    " parameter groups, but the optimizer has ", groups,
                    "; add the same groups before loading");
  check(steps);
}

void LearningRate::load_state_dict(const StateDict& state) {
  check_state_dict(state);
  take_new_groups();
  const auto rates = state.at("base_rates").to(at::kCPU, at::kDouble).contiguous();
  std::copy_n(rates.const_data_ptr<double>(), base_rates_.size(), base_rates_.begin());
  steps_ = state_int(state, "steps");
  write(steps_);
}

}  // namespace torchlore
