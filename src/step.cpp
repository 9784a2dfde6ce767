#include "torchlore/step.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/ones.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/optimizer.h>

#include <algorithm>

#include "privacy/private_gradients.hpp"
#include "step_recovery.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/parameters.hpp"

namespace torchlore {
namespace {

using detail::sum_of_examples;
using torch::optim::Optimizer;

void check_optimizers(const std::vector<Optimizer*>& optimizers) {
  TORCH_CHECK_VALUE(!optimizers.empty(),
                    "a TrainingStep needs at least one optimizer, but got none");
  for (auto it = optimizers.begin(); it != optimizers.end(); ++it) {
    const auto index = it - optimizers.begin();
    TORCH_CHECK_VALUE(*it != nullptr, "optimizer ", index, " of a TrainingStep is a null pointer");
    TORCH_CHECK_VALUE(std::find(optimizers.begin(), it, *it) == it, "optimizer ", index,
                      " of a TrainingStep is given twice; it would step twice");
    TORCH_CHECK_VALUE(!ParameterView(**it).empty(), "optimizer ", index,
                      " of a TrainingStep has no parameters");
    TORCH_CHECK_NOT_IMPLEMENTED(
        dynamic_cast<torch::optim::LBFGS*>(*it) == nullptr,
        "a TrainingStep cannot drive LBFGS, which runs its closure, and with "
        "it backward, several times in one step; call its step(closure)");
  }
}

at::Device device_of(const Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups()) {
    if (!group.params().empty()) return group.params().front().device();
  }
  return at::kCPU;
}

std::vector<at::Tensor> flatten(const std::vector<std::vector<at::Tensor>>& lists) {
  std::vector<at::Tensor> all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

/// 0 for a count of 0, which is nothing to learn from, and no spike.
at::Tensor mean_of(const Loss& loss) {
  const auto count = loss.count.tensor().to(loss.sum.device(), loss.sum.scalar_type());
  return loss.sum.detach() / count.clamp_min(1);
}

StepResult::Outcome outcome_of(const SpikeVerdict& verdict) {
  if (verdict.steps()) return StepResult::Outcome::stepped;
  return verdict.action == SpikeAction::roll_back ? StepResult::Outcome::rolled_back
                                                  : StepResult::Outcome::skipped;
}

}  // namespace

TrainingStep::TrainingStep(Optimizer& optimizer, TrainingStepOptions options)
    : TrainingStep(std::vector<Optimizer*>{&optimizer}, std::move(options)) {}

TrainingStep::TrainingStep(std::vector<Optimizer*> optimizers, TrainingStepOptions options)
    : options_(std::move(options)),
      window_(options_.accumulate, {.reducer = options_.reducer}),
      device_(at::kCPU) {
  check_optimizers(optimizers);
  device_ = device_of(*optimizers.front());
  if (options_.precision.scaler()) scaler_.emplace(*options_.precision.scaler());
  make_guard(optimizers);
  fallback_ = options_.precision.fallback();
  if (options_.schedule) {
    for (const auto* optimizer : optimizers) LearningRate::check(*optimizer, *options_.schedule);
  }
  for (auto* optimizer : optimizers) {
    targets_.push_back({optimizer, dynamic_cast<ScaledStep*>(optimizer)});
    if (options_.schedule) rates_.emplace_back(*optimizer, *options_.schedule);
  }
  if (options_.retry || options_.split)
    recovery_ = std::make_unique<Recovery>(options_, optimizers);
  if (options_.gradient) {
    check_private();
    options_.gradient->gradients_->attach(optimizers);
  }
}

void TrainingStep::make_guard(const std::vector<Optimizer*>& optimizers) {
  if (!options_.spike) return;
  auto options = *options_.spike;
  if (options.reducer.is_identity()) options.reducer = options_.reducer;
  if (options_.schedule && !options.scale_rates) {
    options.scale_rates = [this](double factor) {
      for (auto& rate : rates_) rate.scale(factor);
    };
  }
  guard_.emplace(optimizers, std::move(options));
}

TrainingStep::~TrainingStep() {
  if (options_.gradient) options_.gradient->gradients_->detach();
}

LearningRate* TrainingStep::learning_rate(size_t optimizer) {
  TORCH_CHECK_INDEX(optimizer < targets_.size(), "there is no optimizer ", optimizer,
                    " in this TrainingStep; it has ", targets_.size());
  return rates_.empty() ? nullptr : &rates_[optimizer];
}

void TrainingStep::schedule_new_groups() {
  for (size_t i = 0; i < rates_.size(); ++i) {
    if (rates_[i].groups() != targets_[i].optimizer->param_groups().size()) rates_[i].update();
  }
}

void TrainingStep::start() {
  TORCH_CHECK(!options_.average || !options_.average->swapped(),
              "a TrainingStep cannot train while averaged weights are in the model; end the scope "
              "that WeightAverage::swap() gave first");
  if (!window_.empty()) return;
  for (const auto& target : targets_) target.optimizer->zero_grad();
  if (options_.gradient) options_.gradient->gradients_->start_window();
}

StepResult TrainingStep::finish_call(const at::Tensor& loss) { return finish_call(count(loss)); }

StepResult TrainingStep::finish_call(Loss loss) { return finish_call(count(std::move(loss))); }

StepResult TrainingStep::finish_call(const Counted& counted) {
  if (!counted.tensor.defined()) return end_of_window(counted.loss);
  return backward(counted.tensor, counted.loss);
}

TrainingStep::Counted TrainingStep::count(const at::Tensor& loss) {
  if (!loss.defined() || loss.dim() != 0) return count(sum_of_examples(loss));
  if (drop({loss, 1})) return {{}, {loss.detach(), 1}};
  return {window_.add(loss), {loss.detach(), 1}};
}

TrainingStep::Counted TrainingStep::count(Loss loss) {
  at::Tensor counted;
  if (!drop(loss)) counted = window_.add(loss);
  loss.sum = loss.sum.detach();
  return {std::move(counted), std::move(loss)};
}

StepResult TrainingStep::finish_empty_call() {
  start();
  window_.add_empty();
  return end_of_window({});
}

StepResult TrainingStep::backward(const at::Tensor& counted, const Loss& loss) {
  try {
    scaled(counted).backward();
    if (guard_) guard_->add(loss);
    return end_of_window(loss);
  } catch (...) {
    window_.reset();  // its gradients are half made
    if (guard_) guard_->reset_window();
    throw;
  }
}

at::Tensor TrainingStep::scaled(const at::Tensor& counted) {
  auto* const scaler = active_scaler();
  return scaler != nullptr ? scaler->scale(counted) : counted;
}

StepResult TrainingStep::end_of_window(const Loss& loss) {
  if (!window_.full()) return {StepResult::Outcome::accumulated, loss, {}};
  return apply(loss);
}

StepResult TrainingStep::finish() {
  const auto result = window_.empty() ? StepResult{} : apply({});
  average_waiting();
  return result;
}

void TrainingStep::average_waiting() {
  if (average_waits_) options_.average->update();
  average_waits_ = false;
}

StepResult TrainingStep::apply(const Loss& loss) {
  if (options_.gradient) {
    options_.gradient->gradients_->release(options_.reducer);
  } else if (window_.weighs_nothing()) {
    window_.reset();
    const auto refused = refuse(StepResult::Outcome::nothing);
    if (refused == StepResult::Outcome::rolled_back) average_waits_ = false;
    return {refused, loss, {}};
  }
  std::vector<std::vector<at::Tensor>> grads;
  for (const auto& target : targets_) grads.push_back(gradients(*target.optimizer));
  const auto all = flatten(grads);
  // A rank without gradients of its own steps with the others.
  TORCH_CHECK_VALUE(!all.empty() || !options_.reducer.is_identity(),
                    "backward reached no parameter of the optimizer: none has a gradient; check "
                    "that the loss is computed from the model the optimizer was made for, and not "
                    "detached");
  auto divisor = close_window();
  at::Tensor norm;
  const bool fallen_back = fallback_ && fallback_->fallen_back();
  const auto spikes = guard_ ? guard_->spikes() : 0;
  const auto outcome = inspect(all, divisor, norm);
  if (outcome == StepResult::Outcome::rolled_back) average_waits_ = false;
  if (outcome != StepResult::Outcome::stepped) return {outcome, loss, norm};
  if (guard_ && guard_->spikes() == spikes) average_waiting();
  schedule_new_groups();
  step_all(grads, divisor);
  ++steps_;
  for (auto& rate : rates_) rate.step();
  if (options_.average) {
    average_waits_ = true;
    // Only the next loss tells a guard whether these weights are good.
    if (!guard_) average_waiting();
  }
  if (fallen_back) fallback_->update(*scaler_, /*stepped=*/true);
  return {StepResult::Outcome::stepped, loss, norm};
}

at::Tensor TrainingStep::close_window() {
  // Private gradients are divided already, by a number that is no secret.
  const auto divisor = options_.gradient ? at::ones({}, at::kDouble) : window_.divisor();
  window_.reset();
  if (active_scaler() == nullptr) return divisor;
  // The divisor goes to the scale, not the other way: that would wait for an accelerator.
  const auto scale = scaler_->scale_tensor(device_);
  const auto dtype = scale.is_cpu() ? at::kDouble : at::kFloat;
  return divisor.to(scale.device(), dtype, /*non_blocking=*/!scale.is_cpu()) * scale;
}

StepResult::Outcome TrainingStep::inspect(at::TensorList grads, at::Tensor& divisor,
                                          at::Tensor& norm) {
  auto* const clipper = options_.clip.clipper();
  const auto norm_type = clipper ? clipper->norm_type() : std::nullopt;
  const bool scaling = active_scaler() != nullptr;
  if (!scaling && !norm_type && !guard_) return StepResult::Outcome::stepped;
  auto stats = gradient_stats(grads, norm_type.value_or(2.0));
  if (scaling && found_inf(stats)) {  // before the clipper: it must not remember this norm
    norm = clip_to_norm(stats.norm, divisor, kNoClip).norm;
    return refuse(StepResult::Outcome::skipped);
  }
  SpikeVerdict verdict;
  const auto clipped = clip_to_norm(stats.norm, divisor, [&](const at::Tensor& measured) {
    if (guard_) verdict = guard_->observe_window(measured);
    if (!norm_type || !verdict.steps()) return verdict.max_norm;
    return std::min(verdict.max_norm, clipper->max_norm(agreed_norm(measured)));
  });
  norm = clipped.norm;
  divisor = clipped.divisor;
  return outcome_of(verdict);
}

bool TrainingStep::drop(const Loss& loss) {
  if (!guard_ || !options_.spike->drop_bad_batches) return false;
  if (!guard_->drop(mean_of(loss))) return false;
  window_.add_empty();
  return true;
}

StepResult::Outcome TrainingStep::refuse(StepResult::Outcome otherwise) {
  const auto outcome = guard_ ? outcome_of(guard_->observe_window()) : otherwise;
  return outcome == StepResult::Outcome::stepped ? otherwise : outcome;
}

bool TrainingStep::found_inf(GradientStats& stats) {
  options_.reducer.all_reduce_(stats.found_inf, ReduceOp::max);
  scaler_->update_from(stats.found_inf);
  const bool found = stats.found_inf.item<float>() != 0;  // the one host sync
  if (fallback_) fallback_->update(*scaler_, !found);
  return found;
}

at::Tensor TrainingStep::agreed_norm(const at::Tensor& norm) {
  if (options_.reducer.is_identity() || !options_.clip.clipper()->adaptive()) return norm;
  auto agreed = norm.clone();  // a rank without gradients decides as the others
  options_.reducer.all_reduce_(agreed, ReduceOp::max);
  return agreed;
}

void TrainingStep::step_all(const std::vector<std::vector<at::Tensor>>& grads,
                            const at::Tensor& divisor) {
  // On the host a divisor of 1 is seen for free, and saves the pass.
  const bool nothing_to_divide = divisor.is_cpu() && divisor.item().toDouble() == 1;
  auto* const clipper = options_.clip.clipper();
  const bool writes = clipper != nullptr && !clipper->norm_type();
  for (size_t i = 0; i < targets_.size(); ++i) {
    auto& target = targets_[i];
    if (target.scaled != nullptr && !writes && !nothing_to_divide) {
      target.scaled->step_scaled(divisor);
      continue;
    }
    if (writes) {
      clipper->divide_and_clip_(*target.optimizer, divisor);
    } else {
      divide_gradients_(grads[i], divisor);
    }
    target.optimizer->step();
  }
}

}  // namespace torchlore
