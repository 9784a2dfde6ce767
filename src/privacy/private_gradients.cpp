#include "private_gradients.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "check_delta.hpp"
#include "quantile_clipping.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"

namespace torchlore::privacy {
namespace {

const void* identity(const at::Tensor& tensor) { return tensor.unsafeGetTensorImpl(); }

std::vector<const void*> parameters_of(const torch::nn::Module& model) {
  std::vector<const void*> all;
  for (const auto& parameter : model.parameters()) all.push_back(identity(parameter));
  std::sort(all.begin(), all.end());
  return all;
}

void check_clipping(const DifferentiallyPrivateOptions& options) {
  check_positive("max_grad_norm", options.max_grad_norm);
  if (!options.adaptive) return;
  const auto& adaptive = *options.adaptive;
  TORCH_CHECK_VALUE(
      !options.clipping || options.clipping->kind() == ExampleClipping::Kind::flat,
      "adaptive moves one clipping norm over all parameters, and cannot be combined with "
      "another way of clipping; leave clipping unset");
  check_quantile(adaptive, options.max_grad_norm, options.noise_multiplier,
                 {.options = "QuantileClipping", .norm = "max_grad_norm"});
}

}  // namespace

PrivateGradients::PrivateGradients(torch::nn::Module& model, DifferentiallyPrivateOptions options)
    : model_(model),
      options_(std::move(options)),
      max_norm_(options_.max_grad_norm),
      sizes_(1, 1, Sampling::poisson) {
  if (options_.adaptive && options_.adaptive->count_noise == 0) {
    options_.adaptive->count_noise = options_.expected_batch / 20;
  }
  check_options();
  sizes_ = BatchSizes(options_.dataset_size, options_.expected_batch, options_.sampling);
  if (options_.budget) warn_of(options_.budget->delta);
  list_trained();
  TORCH_CHECK_VALUE(!trained_.empty(),
                    "the model to be trained privately has no trainable parameters");
  known_ = parameters_of(model_);
}

void PrivateGradients::check_options() const {
  const auto& o = options_;
  TORCH_CHECK_VALUE(o.noise_multiplier >= 0 && std::isfinite(o.noise_multiplier),
                    "noise_multiplier must be set to a finite number, 0 or above, but is ",
                    o.noise_multiplier, "; calibrate_noise finds it for a target");
  TORCH_CHECK_VALUE(o.dataset_size >= 1,
                    "dataset_size must be set to the number of examples of the data set, but is ",
                    o.dataset_size);
  const auto size = static_cast<double>(o.dataset_size);
  TORCH_CHECK_VALUE(o.expected_batch > 0 && o.expected_batch <= size,
                    "expected_batch must lie above 0 and be at most dataset_size (", size,
                    "), but is ", o.expected_batch);
  TORCH_CHECK_VALUE(
      o.sampling == Sampling::poisson || std::floor(o.expected_batch) == o.expected_batch,
      "expected_batch must be a whole number for batches of a fixed size, but is ",
      o.expected_batch);
  TORCH_CHECK_VALUE(o.physical_batch >= 0, "physical_batch must be 0 or more, but is ",
                    o.physical_batch);
  check_clipping(o);
  if (o.budget) {
    detail::check_epsilon_delta("PrivacyBudget", o.budget->epsilon, o.budget->delta);
  }
}

void PrivateGradients::warn_of(double delta) {
  if (warned_ || delta * static_cast<double>(options_.dataset_size) < 1) return;
  warned_ = true;
  TORCH_WARN("delta is ", delta, " for a data set of ", options_.dataset_size,
             " examples: to publish one example in ", 1 / delta,
             " as it is would count as private; take a delta well below 1 / ",
             options_.dataset_size);
}

void PrivateGradients::attach(const std::vector<torch::optim::Optimizer*>& optimizers) {
  TORCH_CHECK_VALUE(optimizers_.empty(),
                    "a private gradient stage belongs to one TrainingStep at a time, and has one; "
                    "destroy that, or make another stage");
  optimizers_ = optimizers;
  try {
    list_trained();
  } catch (...) {
    detach();
    throw;
  }
}

void PrivateGradients::list_trained() {
  std::unordered_map<const void*, std::string> left;  // what the model has, and no optimizer yet
  trained_.clear();
  for (const auto& item : model_.named_parameters()) {
    const auto& parameter = item.value();
    if (!parameter.requires_grad() || !left.emplace(identity(parameter), item.key()).second)
      continue;
    TORCH_CHECK_TYPE(
        parameter.scalar_type() == at::kFloat || parameter.scalar_type() == at::kDouble,
        "parameter '", item.key(), "' is ", parameter.scalar_type(),
        ", in which sums are rounded too coarsely to be private; keep it in float32, and "
        "compute in 16 bits by Precision::bf16()");
    trained_.push_back({item.key(), parameter});
  }
  if (optimizers_.empty()) return;
  for (const auto* optimizer : optimizers_) {
    ParameterView(*optimizer).for_each([&](const at::Tensor& parameter) {
      if (!parameter.requires_grad()) return;
      TORCH_CHECK_VALUE(
          left.erase(identity(parameter)) == 1, "an optimizer trains a parameter of shape ",
          parameter.sizes(),
          " that is not the private model's (or trains it twice): its gradient would not "
          "be private");
    });
  }
  TORCH_CHECK_VALUE(
      left.empty(), "parameter '", left.empty() ? "" : left.begin()->second,
      "' of the private model is trained by no optimizer of the step; give it to one, or "
      "freeze it by requires_grad_(false)");
}

void PrivateGradients::start_window() {
  TORCH_CHECK(!options_.budget || steps_left() > 0, "the privacy budget is spent: epsilon is ",
              options_.budget ? epsilon(options_.budget->delta) : 0, " of ",
              options_.budget ? options_.budget->epsilon : 0, " at delta ",
              options_.budget ? options_.budget->delta : 0, " after ", steps_,
              " steps, and one more would exceed it; end the loop where exhausted() is true");
  const auto now = parameters_of(model_);
  TORCH_CHECK_VALUE(
      now == known_,
      "parameters of the private model were added, removed or replaced after the start; "
      "make the stage again when the model is complete");
  list_trained();
  drop_window();
  note_gradients();
}

void PrivateGradients::drop_window() { examples_ = unclipped_ = 0; }

void PrivateGradients::note_gradients() {
  for (auto& trained : trained_) {
    const auto& gradient = trained.parameter.grad();
    trained.gradient = gradient.defined() ? identity(gradient) : nullptr;
    trained.version = gradient.defined() ? gradient._version() : 0;
  }
}

void PrivateGradients::check_untouched() const {
  for (const auto& trained : trained_) {
    const auto& gradient = trained.parameter.grad();
    const bool same = gradient.defined() ? identity(gradient) == trained.gradient &&
                                               gradient._version() == trained.version
                                         : trained.gradient == nullptr;
    TORCH_CHECK_VALUE(same, "something else wrote the gradient of parameter '", trained.name,
                      "' within a private step: it would not be clipped; let the step alone call "
                      "backward, and do not change gradients before it is over");
  }
}

ExampleClipping PrivateGradients::clipping() const {
  return options_.clipping && !options_.adaptive ? *options_.clipping
                                                 : ExampleClipping::flat(max_norm_);
}

void PrivateGradients::add(const at::Tensor& losses) {
  check_untouched();
  if (losses.size(0) == 0) return;
  const auto sum = add_clipped_sum(losses, model_, clipping(), options_.per_sample);
  note_gradients();
  examples_ += static_cast<double>(sum.examples);
  unclipped_ += static_cast<double>(sum.examples - sum.clipped - sum.dropped);
}

PrivacyEvent PrivateGradients::event() const {
  // An example replaced moves the sum by twice the norm.
  const double doubled = options_.sampling == Sampling::fixed_size ? 2 : 1;
  return {.noise_multiplier = options_.noise_multiplier / doubled,
          .sample_rate = options_.expected_batch / static_cast<double>(options_.dataset_size),
          .sampling = options_.sampling};
}

double PrivateGradients::gradient_noise() const {
  const double z = options_.noise_multiplier;
  return options_.adaptive ? raised_noise(*options_.adaptive, z) : z;
}

void PrivateGradients::release(const Reducer& ranks) {
  const at::NoGradGuard no_grad;
  check_untouched();
  auto counts = at::full({2}, examples_, at::kDouble);
  counts[1].fill_(unclipped_);
  ranks.all_reduce_(counts, ReduceOp::sum);
  const double examples = counts[0].item<double>();
  const double unclipped = counts[1].item<double>();
  const bool noisy = options_.noise_multiplier > 0;
  if (noisy) sizes_.check(static_cast<int64_t>(examples));
  std::vector<at::Tensor> gradients;
  for (auto& trained : trained_) {
    auto& gradient = trained.parameter.mutable_grad();
    // Whether a gradient is there at all is private too.
    if (!gradient.defined()) gradient = at::zeros_like(trained.parameter);
    ranks.all_reduce_(gradient, ReduceOp::sum);
    gradients.push_back(gradient);
  }
  if (noisy) spent_.add(event());  // first: what was released is never left out
  noiseless_ = noiseless_ || !noisy;
  ++steps_;
  sizes_.add(static_cast<int64_t>(examples));
  add_noise(gradients, gradient_noise() * clipping().sensitivity(), ranks);
  for (auto& gradient : gradients) gradient.div_(options_.expected_batch);
  if (options_.adaptive) adapt(unclipped - examples / 2, ranks);
  drop_window();
}

/// Noise once in total, on what is already the sum over all ranks: added to one rank's part, the low bits of
/// the others' would show.
void PrivateGradients::add_noise(at::TensorList tensors, double stddev, const Reducer& ranks) {
  if (stddev == 0) return;
  if (ranks.rank() == 0) add_gaussian_noise_(tensors, stddev, options_.noise);
  if (ranks.is_identity()) return;
  for (auto tensor : tensors) {
    if (ranks.rank() != 0) tensor.zero_();
    ranks.all_reduce_(tensor, ReduceOp::sum);
  }
}

void PrivateGradients::adapt(double centred, const Reducer& ranks) {
  const auto& adaptive = *options_.adaptive;
  const auto count = at::full({1}, centred, at::kDouble);
  // Each example adds 1/2 or -1/2, so that the noise of this count is twice as much relative to it.
  add_noise({count}, options_.noise_multiplier > 0 ? adaptive.count_noise : 0, ranks);
  max_norm_ = next_norm(adaptive, max_norm_, count.item<double>(), options_.expected_batch);
}

PrivateGradients::Snapshot PrivateGradients::snapshot() const {
  Snapshot snapshot{{}, examples_, unclipped_};
  for (const auto& trained : trained_) {
    const auto& gradient = trained.parameter.grad();
    snapshot.gradients.push_back(gradient.defined() ? gradient.detach().clone() : at::Tensor());
  }
  return snapshot;
}

void PrivateGradients::restore(const Snapshot& snapshot) {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < trained_.size(); ++i) {
    auto& gradient = trained_[i].parameter.mutable_grad();
    const auto& before = snapshot.gradients[i];
    if (!before.defined()) {
      gradient.reset();
    } else if (gradient.defined()) {
      gradient.copy_(before);
    } else {
      gradient = before.clone();
    }
  }
  examples_ = snapshot.examples;
  unclipped_ = snapshot.unclipped;
  note_gradients();
}

Accounting PrivateGradients::accounting() const {
  const bool fixed = options_.sampling == Sampling::fixed_size;
  return fixed && options_.accounting == Accounting::prv ? Accounting::pld : options_.accounting;
}

double PrivateGradients::epsilon(double delta) {
  detail::check_delta(delta);
  warn_of(delta);
  if (noiseless_) return std::numeric_limits<double>::infinity();
  return spent_epsilon(spent_, delta, accounting());
}

int64_t PrivateGradients::steps_left() {
  if (!options_.budget) return std::numeric_limits<int64_t>::max();
  if (noiseless_ || options_.noise_multiplier == 0) return 0;
  if (!last_step_) {
    last_step_ = steps_ + steps_within(*options_.budget, spent_, event(), accounting());
  }
  return *last_step_ - steps_;
}

}  // namespace torchlore::privacy
