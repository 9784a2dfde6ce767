#include "torchlore/precision/loss_scaler.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_amp_update_scale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/optim/lbfgs.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "torchlore/core/error.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/core/scaled_step.hpp"

namespace torchlore {
namespace {

using torch::optim::Optimizer;

constexpr auto kClosureRefusal =
    "step() takes no closure while the scaler is enabled: a closure runs backward several times in "
    "one step, and every run would need its own scale, unscaling and overflow check. Train with an "
    "optimizer that needs none (SGD, AdamW), or in bfloat16, which needs no scaler";

constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// Scales are kept in float32, as LibTorch's kernels want them; these are its limits.
constexpr double kSmallestScale = std::numeric_limits<float>::min();
constexpr double kLargestScale = std::numeric_limits<float>::max();

void check_scale(const char* name, double value, const LossScalerOptions& options) {
  check_positive(name, value);
  check_in_range(name, value, options.min_scale, options.max_scale);
}

void check_growth_factor(double factor) {
  TORCH_CHECK_VALUE(std::isfinite(factor) && factor > 1,
                    "growth_factor must be a finite number above 1, but is ", factor);
}

void check_backoff_factor(double factor) {
  TORCH_CHECK_VALUE(factor > 0 && factor < 1,
                    "backoff_factor must lie between 0 and 1, both excluded, but is ", factor);
}

void check_growth_interval(int64_t interval) {
  check_count("growth_interval", interval);
  check_in_range("growth_interval", static_cast<double>(interval), 1,
                 std::numeric_limits<int32_t>::max());
}

void check_clip(double max_norm, double norm_type) {
  TORCH_CHECK_VALUE(max_norm > 0, "max_norm must be above 0, but is ", max_norm,
                    "; use infinity to measure without clipping");
  TORCH_CHECK_VALUE(norm_type > 0, "norm_type must be above 0 (2, 1, infinity, …), but is ",
                    norm_type);
}

void check_options(const LossScalerOptions& options) {
  check_in_range("min_scale", options.min_scale, kSmallestScale, options.max_scale);
  check_in_range("max_scale", options.max_scale, options.min_scale, kLargestScale);
  check_scale("init_scale", options.init_scale, options);
  check_growth_factor(options.growth_factor);
  check_backoff_factor(options.backoff_factor);
  check_growth_interval(options.growth_interval);
  check_count("hysteresis", options.hysteresis);
}

/// Copies without waiting, except to the host, where the value would be read before it arrives.
at::Tensor on_device(const at::Tensor& tensor, c10::Device device) {
  return tensor.to(device, /*non_blocking=*/!device.is_cpu());
}

void check_unscalable(at::TensorList grads) {
  check_gradients(grads);
  for (const auto& grad : grads) {
    TORCH_CHECK_VALUE(grad.scalar_type() != at::kHalf,
                      "float16 gradients cannot be unscaled: divided by the scale, the small ones "
                      "vanish again. Keep the parameters in float32 and let Autocast cast inside "
                      "the forward");
  }
}

/// The optimizer's gradients. Sparse float16 ones are coalesced in the parameter: their duplicates
/// may overflow when they are added up, which the check for inf must see.
std::vector<at::Tensor> scaled_gradients(const Optimizer& optimizer) {
  const ParameterView parameters(optimizer);
  parameters.for_each([](const at::Tensor& parameter) {
    auto& grad = parameter.mutable_grad();
    if (grad.defined() && grad.is_sparse() && grad.scalar_type() == at::kHalf) {
      grad = grad.coalesce();
    }
  });
  return gradients(parameters);
}

/// The gradients of one device and dtype: what one kernel call takes.
struct GradientGroup {
  c10::Device device;
  c10::ScalarType dtype;
  std::vector<at::Tensor> gradients;
};

std::vector<GradientGroup> group_gradients(at::TensorList grads) {
  std::vector<GradientGroup> groups;
  for (const auto& grad : grads) {
    const auto values = grad.is_sparse() ? grad._values() : grad;
    const auto same = [&](const GradientGroup& group) {
      return group.device == values.device() && group.dtype == values.scalar_type();
    };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) {
      group = groups.insert(group, {values.device(), values.scalar_type(), {}});
    }
    group->gradients.push_back(values);
  }
  return groups;
}

/// Divides one group in place by the scale; returns found_inf on the group's device.
at::Tensor unscale_group_(const GradientGroup& group, const at::Tensor& scale,
                          const at::Tensor& inverse_scale) {
  // LibTorch's kernel does not take bfloat16 on CUDA.
  if (group.dtype == at::kBFloat16) {
    auto found_inf = gradient_stats(group.gradients, kInfinity).found_inf;
    divide_gradients_(group.gradients, scale);
    return found_inf;
  }
  auto found_inf = at::zeros({}, scale.options().device(group.device));
  at::_amp_foreach_non_finite_check_and_unscale_(group.gradients, found_inf,
                                                 on_device(inverse_scale, group.device));
  return found_inf;
}

/// Divides in place by the scale; returns found_inf on the scale's device.
at::Tensor unscale_gradients_(at::TensorList grads, const at::Tensor& scale) {
  // The reciprocal is taken in float64, as float32 division may be inexact on some devices.
  const auto inverse_scale = scale.to(at::kDouble).reciprocal().to(at::kFloat);
  at::Tensor found_inf;
  for (const auto& group : group_gradients(grads)) {
    const auto found = on_device(unscale_group_(group, scale, inverse_scale), scale.device());
    found_inf = found_inf.defined() ? at::maximum(found_inf, found) : found;
  }
  return found_inf.defined() ? found_inf : at::zeros({}, scale.options());
}

}  // namespace

LossScaler::LossScaler(LossScalerOptions options)
    : options_(std::move(options)),
      initial_scale_(options_.init_scale),
      initial_hysteresis_tracker_(options_.hysteresis) {
  check_options(options_);
}

void LossScaler::create_scale(c10::Device device) {
  if (scale_.defined()) return;
  const auto floats = at::TensorOptions(at::kFloat).device(device);
  const auto ints = floats.dtype(at::kInt);
  scale_ = at::full({}, initial_scale_, floats);
  growth_tracker_ = at::full({}, initial_growth_tracker_, ints);
  hysteresis_tracker_ = at::full({}, initial_hysteresis_tracker_, ints);
}

void LossScaler::check_scale_exists(const char* caller) const {
  TORCH_CHECK(scale_.defined(), caller,
              "() was called before any scale(): no loss has been scaled yet. Backpropagate "
              "scaler.scale(loss), not the loss itself");
}

at::Tensor LossScaler::scale(const at::Tensor& output) {
  TORCH_CHECK_VALUE(output.defined(), "scale() got an undefined tensor");
  TORCH_CHECK_TYPE(output.is_floating_point() || output.is_complex(),
                   "scale() needs a floating tensor, but got ", output.scalar_type());
  if (!options_.enabled) return output;
  create_scale(output.device());
  return output * on_device(scale_, output.device());
}

std::vector<at::Tensor> LossScaler::scale(const std::vector<at::Tensor>& outputs) {
  std::vector<at::Tensor> scaled;
  scaled.reserve(outputs.size());
  for (const auto& output : outputs) scaled.push_back(scale(output));
  return scaled;
}

LossScaler::OptimizerState& LossScaler::state_of(const Optimizer& optimizer) {
  for (auto& state : optimizers_) {
    if (state.optimizer == &optimizer) return state;
  }
  return optimizers_.emplace_back(OptimizerState{&optimizer, Stage::ready, false, at::Tensor()});
}

void LossScaler::check_can_unscale(const Optimizer& optimizer, const char* caller) {
  check_scale_exists(caller);
  const auto stage = state_of(optimizer).stage;
  TORCH_CHECK(stage != Stage::unscaled, caller,
              "() would divide this optimizer's gradients by the scale a second time: they were "
              "unscaled since the last update(). Call step() and update() first");
  TORCH_CHECK(stage != Stage::stepped, caller,
              "() was called after step() for this optimizer; call update() first");
}

void LossScaler::check_can_step(Optimizer& optimizer, const char* caller) {
  TORCH_CHECK_NOT_IMPLEMENTED(dynamic_cast<torch::optim::LBFGS*>(&optimizer) == nullptr,
                              kClosureRefusal);
  check_scale_exists(caller);
  TORCH_CHECK(state_of(optimizer).stage != Stage::stepped, caller,
              "() was called for an optimizer that has stepped since the last update(); call "
              "update() once after all optimizers have stepped");
}

void LossScaler::record(const Optimizer& optimizer, at::Tensor found_inf, bool had_gradients) {
  found_inf = on_device(found_inf, scale_.device());
  options_.reducer.all_reduce_(found_inf, ReduceOp::max);
  auto& state = state_of(optimizer);
  state.found_inf = std::move(found_inf);
  state.had_gradients = had_gradients;
}

void LossScaler::unscale_(Optimizer& optimizer) {
  if (!options_.enabled) return;
  check_can_unscale(optimizer, "unscale_");
  const at::NoGradGuard no_grad;
  const auto grads = gradients(optimizer);
  check_unscalable(grads);
  record(optimizer, unscale_gradients_(grads, scale_), !grads.empty());
  state_of(optimizer).stage = Stage::unscaled;
}

/// Reads the gradients, records found_inf, and tells what to divide by.
ClippedNorm LossScaler::measure(const Optimizer& optimizer, at::TensorList grads, double max_norm,
                                double norm_type, const Reducer& norm_ranks) {
  const auto norm = gradient_stats(grads, norm_type, norm_ranks).norm;
  if (!options_.enabled) return clip_to_norm(norm, {}, max_norm);
  // The norm is not finite if a gradient is not, and also if only the norm itself overflows.
  record(optimizer, at::isfinite(norm).logical_not().to(at::kFloat), !grads.empty());
  return clip_to_norm(norm, scale_, max_norm);
}

at::Tensor LossScaler::unscale_and_clip_(Optimizer& optimizer, double max_norm, double norm_type,
                                         const Reducer& norm_ranks) {
  check_clip(max_norm, norm_type);
  if (options_.enabled) check_can_unscale(optimizer, "unscale_and_clip_");
  const at::NoGradGuard no_grad;
  const auto grads = gradients(optimizer);
  if (options_.enabled) check_unscalable(grads);
  const auto clipped = measure(optimizer, grads, max_norm, norm_type, norm_ranks);
  divide_gradients_(grads, clipped.divisor);
  if (options_.enabled) state_of(optimizer).stage = Stage::unscaled;
  return clipped.norm;
}

template <typename F>
bool LossScaler::step_if_finite(const Optimizer& optimizer, const F& make_step) {
  auto& state = state_of(optimizer);
  // A rank without a gradient of its own still steps with the others, e.g. when they are sharded.
  TORCH_CHECK(state.had_gradients || !options_.reducer.is_identity(),
              "no gradient in any of this optimizer's ", ParameterView(optimizer).size(),
              " parameters. Was backward() called, and does the optimizer hold this model's "
              "parameters?");
  const bool finite = state.found_inf.item<float>() == 0;  // the one host sync of a step
  if (finite) make_step();
  state.stage = Stage::stepped;
  return finite;
}

bool LossScaler::step(Optimizer& optimizer) {
  if (!options_.enabled) {
    optimizer.step();
    return true;
  }
  check_can_step(optimizer, "step");
  auto* scaled = dynamic_cast<ScaledStep*>(&optimizer);
  if (scaled == nullptr || state_of(optimizer).stage == Stage::unscaled) {
    if (state_of(optimizer).stage == Stage::ready) unscale_(optimizer);
    return step_if_finite(optimizer, [&] { optimizer.step(); });
  }
  const at::NoGradGuard no_grad;
  const auto grads = scaled_gradients(optimizer);
  record(optimizer, gradient_stats(grads, kInfinity).found_inf, !grads.empty());
  return step_if_finite(optimizer, [&] { scaled->step_scaled(scale_); });
}

ClippedStep LossScaler::step_clipped(Optimizer& optimizer, double max_norm, double norm_type,
                                     const Reducer& norm_ranks) {
  if (!options_.enabled) {
    const auto norm = unscale_and_clip_(optimizer, max_norm, norm_type, norm_ranks);
    optimizer.step();
    return {true, norm};
  }
  check_clip(max_norm, norm_type);
  check_can_step(optimizer, "step_clipped");
  check_can_unscale(optimizer, "step_clipped");
  const at::NoGradGuard no_grad;
  auto* scaled = dynamic_cast<ScaledStep*>(&optimizer);
  const auto grads = scaled_gradients(optimizer);
  if (scaled == nullptr) check_unscalable(grads);
  const auto clipped = measure(optimizer, grads, max_norm, norm_type, norm_ranks);
  const bool stepped = step_if_finite(optimizer, [&] {
    if (scaled != nullptr) return scaled->step_scaled(clipped.divisor);
    divide_gradients_(grads, clipped.divisor);
    optimizer.step();
  });
  return {stepped, clipped.norm};
}

bool LossScaler::step(Optimizer& optimizer, const std::function<at::Tensor()>& closure) {
  TORCH_CHECK_NOT_IMPLEMENTED(!options_.enabled, kClosureRefusal);
  optimizer.step(closure);
  return true;
}

void LossScaler::update() {
  if (!options_.enabled) return;
  check_scale_exists("update");
  at::Tensor found_inf;
  for (const auto& state : optimizers_) {
    if (state.stage == Stage::ready) continue;
    found_inf = found_inf.defined() ? at::maximum(found_inf, state.found_inf) : state.found_inf;
  }
  TORCH_CHECK(found_inf.defined(),
              "update() found no optimizer that was unscaled or stepped since the last update(). "
              "Call step(optimizer) first, or set the scale by update(new_scale)");
  adapt_scale(found_inf);
  optimizers_.clear();
}

void LossScaler::adapt_scale(const at::Tensor& found_inf) {
  const at::NoGradGuard no_grad;
  auto backs_off = found_inf;
  if (options_.hysteresis > 1) {
    const auto overflow = found_inf.ne(0);
    hysteresis_tracker_.sub_(overflow.to(at::kInt)).clamp_min_(0);
    const auto tolerated = overflow.logical_and(hysteresis_tracker_.gt(0));
    // To the kernel a tolerated overflow is a clean step; it must leave the tracker at 0, not 1.
    backs_off = found_inf.masked_fill(tolerated, 0);
    growth_tracker_.masked_fill_(tolerated, -1);
  }
  last_overflow_ = backs_off;
  scale_before_ = scale_.clone();
  at::_amp_update_scale_(scale_, growth_tracker_, backs_off, options_.growth_factor,
                         options_.backoff_factor, options_.growth_interval);
  scale_.clamp_(options_.min_scale, options_.max_scale);
  if (options_.hysteresis > 1) {
    auto forgiven = found_inf.eq(0);
    // After a clean step the tracker is 0 only where the scale has just grown.
    if (!options_.consecutive_hysteresis) forgiven = forgiven.logical_and(growth_tracker_.eq(0));
    hysteresis_tracker_.masked_fill_(forgiven, options_.hysteresis);
  }
}

void LossScaler::update(double new_scale) {
  check_scale("new_scale", new_scale, options_);
  if (!options_.enabled) return;
  check_scale_exists("update");
  const at::NoGradGuard no_grad;
  scale_.fill_(new_scale);
  last_overflow_.reset();
  optimizers_.clear();
}

void LossScaler::update(const at::Tensor& new_scale) {
  TORCH_CHECK_VALUE(new_scale.defined() && new_scale.numel() == 1 &&
                        new_scale.is_floating_point() && !new_scale.requires_grad(),
                    "new_scale must be one floating number without gradient");
  if (!options_.enabled) return;
  check_scale_exists("update");
  const at::NoGradGuard no_grad;
  scale_.copy_(new_scale.reshape({}), /*non_blocking=*/!scale_.is_cpu());
  scale_.clamp_(options_.min_scale, options_.max_scale);
  last_overflow_.reset();
  optimizers_.clear();
}

void LossScaler::update_from(const at::Tensor& found_inf) {
  TORCH_CHECK_VALUE(found_inf.defined() && found_inf.numel() == 1 && found_inf.is_floating_point(),
                    "found_inf must be one floating number");
  if (!options_.enabled) return;
  check_scale_exists("update_from");
  // A copy, as at_floor() may read it later.
  const auto own = found_inf.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  auto here = on_device(own.reshape({}), scale_.device());
  optimizers_.push_back({nullptr, Stage::stepped, true, std::move(here)});
  update();
}

at::Tensor LossScaler::scale_tensor(c10::Device device) {
  if (!options_.enabled) return at::ones({}, at::TensorOptions(at::kFloat).device(device));
  create_scale(device);
  return on_device(scale_, device);
}

double LossScaler::get_scale() const {
  if (!options_.enabled) return 1.0;
  return scale_.defined() ? scale_.item<float>() : initial_scale_;
}

void LossScaler::set_growth_factor(double factor) {
  check_growth_factor(factor);
  options_.growth_factor = factor;
}

void LossScaler::set_backoff_factor(double factor) {
  check_backoff_factor(factor);
  options_.backoff_factor = factor;
}

void LossScaler::set_growth_interval(int64_t interval) {
  check_growth_interval(interval);
  options_.growth_interval = interval;
}

bool LossScaler::at_floor() const {
  if (!last_overflow_.defined()) return false;
  return last_overflow_.ne(0).logical_and(scale_before_.le(options_.min_scale)).item<bool>();
}

StateDict LossScaler::state_dict() const {
  if (!options_.enabled) return {};
  const auto count = [](const at::Tensor& tensor, int64_t initial) {
    return state_value(tensor.defined() ? int64_t{tensor.item<int32_t>()} : initial);
  };
  return {{"scale", state_value(get_scale())},
          {"growth_factor", state_value(options_.growth_factor)},
          {"backoff_factor", state_value(options_.backoff_factor)},
          {"growth_interval", state_value(options_.growth_interval)},
          {"_growth_tracker", count(growth_tracker_, initial_growth_tracker_)},
          {"_hysteresis_tracker", count(hysteresis_tracker_, initial_hysteresis_tracker_)}};
}

void LossScaler::load_state_dict(const StateDict& state) {
  if (!options_.enabled) return;
  TORCH_CHECK_VALUE(!state.empty(),
                    "load_state_dict() got an empty state; it was perhaps saved from a LossScaler "
                    "with enabled = false");
  const double scale = state_double(state, "scale");
  const double growth_factor = state_double(state, "growth_factor");
  const double backoff_factor = state_double(state, "backoff_factor");
  const int64_t growth_interval = state_int(state, "growth_interval");
  const int64_t growth_tracker = state_int(state, "_growth_tracker");
  const int64_t hysteresis_tracker = state.contains("_hysteresis_tracker")
                                         ? state_int(state, "_hysteresis_tracker")
                                         : options_.hysteresis;
  check_positive("scale", scale);
  check_growth_factor(growth_factor);
  check_backoff_factor(backoff_factor);
  check_growth_interval(growth_interval);
  check_not_negative("_growth_tracker", static_cast<double>(growth_tracker));
  check_not_negative("_hysteresis_tracker", static_cast<double>(hysteresis_tracker));

  initial_scale_ = std::clamp(scale, options_.min_scale, options_.max_scale);
  initial_growth_tracker_ = growth_tracker;
  initial_hysteresis_tracker_ = std::min(hysteresis_tracker, options_.hysteresis);
  options_.growth_factor = growth_factor;
  options_.backoff_factor = backoff_factor;
  options_.growth_interval = growth_interval;
  if (scale_.defined()) {
    const auto device = scale_.device();
    scale_.reset();
    last_overflow_.reset();
    create_scale(device);
  }
}

}  // namespace torchlore
