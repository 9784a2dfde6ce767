#include <optional>
#include <string>
#include <utility>

#include "core/state_parts.hpp"
#include "step_recovery.hpp"
#include "torchlore/step.hpp"

namespace torchlore {

using detail::add_below;
using detail::state_below;

namespace {

std::string rate_prefix(size_t optimizer) { return "schedule/" + std::to_string(optimizer) + "/"; }

}  // namespace

StateDict TrainingStep::state_dict() const {
  StateDict state{{"steps", state_value(steps_)}};
  add_below(state, "window/", window_.state_dict());
  if (scaler_) add_below(state, "scaler/", scaler_->state_dict());
  add_below(state, "clip/", options_.clip.state_dict());
  if (guard_) add_below(state, "spike/", guard_->state_dict());
  if (options_.average) {
    add_below(state, "average/", options_.average->state_dict());
    state["average_waits"] = state_value(int64_t{average_waits_});
  }
  for (size_t i = 0; i < rates_.size(); ++i) {
    add_below(state, rate_prefix(i), rates_[i].state_dict());
  }
  if (fallback_) add_below(state, "fallback/", fallback_->state_dict());
  if (const auto* known = sizes()) add_below(state, "split/", known->state_dict());
  if (options_.gradient) add_below(state, "privacy/", options_.gradient->state_dict());
  return state;
}

void TrainingStep::load_state_dict(const StateDict& state) {
  const auto part = [&](const std::string& prefix) { return state_below(state, prefix); };
  const auto stage = [&](const std::string& prefix) {
    auto found = part(prefix);
    TORCH_CHECK_VALUE(!found.empty(), "the saved state of the TrainingStep has no '", prefix,
                      "': it was saved without that stage; load it into a step with the stages it "
                      "was saved from");
    return found;
  };
  const auto steps = state_int(state, "steps");
  auto window = window_;
  window.load_state_dict(part("window/"));
  auto clip = options_.clip;
  clip.load_state_dict(part("clip/"));
  for (size_t i = 0; i < rates_.size(); ++i) rates_[i].check_state_dict(stage(rate_prefix(i)));
  if (guard_) guard_->check_state_dict(part("spike/"));
  if (options_.average) options_.average->check_state_dict(stage("average/"));
  const bool average_waits = options_.average && state_int(state, "average_waits") != 0;
  auto known = sizes() ? std::optional(*sizes()) : std::nullopt;
  if (known) known->load_state_dict(stage("split/"));
  auto fallback = fallback_;
  if (fallback) fallback->load_state_dict(stage("fallback/"));
  if (options_.gradient) options_.gradient->load_state_dict(stage("privacy/"));
  if (scaler_) scaler_->load_state_dict(part("scaler/"));
  fallback_ = std::move(fallback);
  if (known) recovery_->splitter->load_state_dict(part("split/"));
  if (guard_) guard_->load_state_dict(part("spike/"));
  options_.clip = std::move(clip);
  window_ = std::move(window);
  steps_ = steps;
  for (size_t i = 0; i < rates_.size(); ++i) rates_[i].load_state_dict(part(rate_prefix(i)));
  if (options_.average) options_.average->load_state_dict(part("average/"));
  average_waits_ = average_waits;
}

}  // namespace torchlore
