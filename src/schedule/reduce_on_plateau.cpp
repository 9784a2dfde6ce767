#include "torchlore/schedule/reduce_on_plateau.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using Options = ReduceOnPlateauOptions;

void check(const Options& options) {
  TORCH_CHECK_VALUE(options.factor > 0 && options.factor < 1,
                    "ReduceOnPlateau: factor must lie between 0 and 1, but is ", options.factor);
  TORCH_CHECK_VALUE(options.patience >= 0, "ReduceOnPlateau: patience must be 0 or more, but is ",
                    options.patience);
  TORCH_CHECK_VALUE(options.cooldown >= 0, "ReduceOnPlateau: cooldown must be 0 or more, but is ",
                    options.cooldown);
  check_not_negative("ReduceOnPlateau: threshold", options.threshold);
  check_not_negative("ReduceOnPlateau: eps", options.eps);
  TORCH_CHECK_VALUE(!options.min_lr.empty(),
                    "ReduceOnPlateau: min_lr is empty; give 0 for no lower bound");
  for (const double min : options.min_lr) check_not_negative("ReduceOnPlateau: min_lr", min);
}

double mean_over_ranks(double metric, const Reducer& reducer) {
  if (reducer.is_identity()) return metric;
  auto sum = state_value(metric);
  reducer.all_reduce_(sum, ReduceOp::sum);
  return sum.item().toDouble() / static_cast<double>(reducer.world_size());
}

double worst(Options::Mode mode) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return mode == Options::Mode::min ? kInfinity : -kInfinity;
}

}  // namespace

ReduceOnPlateau::ReduceOnPlateau(LearningRate& rate, ReduceOnPlateauOptions options)
    : rate_(&rate), options_(std::move(options)), best_(worst(options_.mode)) {
  check(options_);
}

bool ReduceOnPlateau::better(double metric) const {
  const bool relative = options_.threshold_mode == Options::ThresholdMode::rel;
  const double by = options_.threshold;
  if (options_.mode == Options::Mode::min) {
    return metric < (relative ? best_ * (1 - by) : best_ - by);
  }
  return metric > (relative ? best_ * (1 + by) : best_ + by);
}

bool ReduceOnPlateau::step(double metric) {
  const auto bounds = options_.min_lr.size();
  TORCH_CHECK_VALUE(bounds == 1 || bounds == rate_->groups(), "ReduceOnPlateau has ", bounds,
                    " min_lr for ", rate_->groups(),
                    " parameter groups; give one for all, or one per group");
  metric = mean_over_ranks(metric, options_.reducer);
  if (better(metric)) {
    best_ = metric;
    bad_steps_ = 0;
  } else {
    ++bad_steps_;
  }
  if (cooldown_left_ > 0) {
    --cooldown_left_;
    bad_steps_ = 0;
  }
  if (bad_steps_ <= options_.patience) return false;
  cooldown_left_ = options_.cooldown;
  bad_steps_ = 0;
  return reduce();
}

bool ReduceOnPlateau::reduce() {
  bool reduced = false;
  for (size_t g = 0; g < rate_->groups(); ++g) {
    const double before = rate_->base_rate(g);
    const double low = options_.min_lr[options_.min_lr.size() == 1 ? 0 : g];
    const double after = std::max(before * options_.factor, low);
    if (before - after <= options_.eps) continue;
    rate_->set_base_rate(g, after);
    reduced = true;
  }
  return reduced;
}

StateDict ReduceOnPlateau::state_dict() const {
  return {{"best", state_value(best_)},
          {"bad_steps", state_value(bad_steps_)},
          {"cooldown_left", state_value(cooldown_left_)}};
}

void ReduceOnPlateau::load_state_dict(const StateDict& state) {
  const double best = state_double(state, "best");
  const auto bad_steps = state_int(state, "bad_steps");
  cooldown_left_ = state_int(state, "cooldown_left");
  bad_steps_ = bad_steps;
  best_ = best;
}

}  // namespace torchlore
