#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <cmath>

#include "privacy/private_gradients.hpp"
#include "step_recovery.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/core/rng.hpp"

namespace torchlore {
namespace {

/// The values of a model's buffers.
class Buffers {
 public:
  explicit Buffers(const torch::nn::Module& model) {
    for (const auto& buffer : model.buffers()) kept_.emplace_back(buffer, buffer.detach().clone());
  }
  void restore() const {
    const at::NoGradGuard no_grad;
    for (const auto& [buffer, value] : kept_) {
      if (!at::equal(buffer, value)) buffer.copy_(value);  // a graph may have saved it
    }
  }

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> kept_;
};

/// How far a loss may be from itself: kernels may sum in another order.
double allowance(const at::Tensor& losses) {
  const bool low = losses.scalar_type() == at::kHalf || losses.scalar_type() == at::kBFloat16;
  return low ? 1e-2 : 1e-5;
}

bool same_loss(const at::Tensor& a, const at::Tensor& b, int64_t example) {
  if (a.sizes() != b.sizes()) return false;
  const double x = a[example].item<double>();
  const double y = b[example].item<double>();
  if (!std::isfinite(x) || !std::isfinite(y)) return std::isfinite(x) == std::isfinite(y);
  return std::abs(x - y) <= allowance(a) * std::max({std::abs(x), std::abs(y), 1e-3});
}

}  // namespace

at::Tensor TrainingStep::copies_of(int64_t example, int64_t count) {
  return at::full({count}, example, at::kLong);
}

void TrainingStep::check_private() const {
  TORCH_CHECK_NOT_IMPLEMENTED(!scaler_,
                              "private training cannot have a LossScaler: its scale would follow "
                              "which examples overflow, which "
                              "no noise covers; take Precision::bf16() or fp32()");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !guard_,
      "private training cannot have a SpikeGuard: it decides on the losses of the examples drawn, "
      "which no "
      "noise covers; clip the noisy gradients by clip::zclip() or clip::autoclip() instead");
  TORCH_CHECK_NOT_IMPLEMENTED(!options_.accumulate.by_counts(),
                              "private training cannot have a window of counts: what is in the "
                              "examples would decide how many make "
                              "a logical batch; measure it in micro-batches (Accumulate::batches)");
}

/// The parts of a micro-batch, one after the other.
class TrainingStep::PrivateParts {
 public:
  PrivateParts(TrainingStep& step, const PrivateCall& call)
      : step_(step), call_(call), stage_(*step.options_.gradient->gradients_) {}

  void begin() { total_ = {}; }
  const Loss& total() const { return total_; }

  /// Runs the examples [from, to); `to` of -1 stands for all there are.
  void run(int64_t from, int64_t to) {
    const int64_t most = stage_.options().physical_batch;
    if (to < 0 || most == 0) return run_at_once(from, to);
    for (; from < to; from += most) run_at_once(from, std::min(from + most, to));
  }

 private:
  void run_at_once(int64_t from, int64_t to) {
    const bool check = stage_.checks_mixing() && to - from > 1;
    const auto losses = check ? checked(from, to) : forward(from, to, call_.loss_of(from, to));
    stage_.add(losses);
    const auto sum = losses.detach().sum();
    total_.sum = total_.sum.defined() ? total_.sum + sum : sum;
    total_.count = Count(total_.count.value() + losses.size(0));
  }

  static at::Tensor forward(int64_t from, int64_t to, const AnyLoss& result) {
    const auto* losses = std::get_if<at::Tensor>(&result);
    TORCH_CHECK_VALUE(
        losses != nullptr,
        "private training needs one loss per example [B], but the loss function returned a "
        "Loss{sum, count}, in which single examples cannot be told apart");
    TORCH_CHECK_VALUE(
        losses->defined() && losses->dim() == 1,
        "private training needs one loss per example [B], but the loss function returned ",
        losses->defined() ? c10::str("shape ", losses->sizes()) : "an undefined tensor",
        "; set its reduction to none, and reduce all but the first dimension");
    TORCH_CHECK_VALUE(
        to < 0 || losses->size(0) == to - from,
        "private training needs one loss per example, but the loss function returned ",
        losses->size(0), " for ", to - from, " examples");
    return *losses;
  }

  /// The losses, after a look whether that of an example depends on what is in the others.
  at::Tensor checked(int64_t from, int64_t to) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        call_.loss_of_copies != nullptr,
        "whether examples are mixed cannot be checked for this type of batch; write "
        "select_examples(batch, indices) beside its slice(), or set check_mixing to false");
    const auto& model = stage_.model();
    const auto rng = RngState::capture();
    const Buffers buffers(model);
    auto losses = forward(from, to, call_.loss_of(from, to));
    const auto rng_after = RngState::capture();
    const Buffers buffers_after(model);
    const auto again = [&](const auto& loss_of) {
      rng.restore();
      buffers.restore();
      return forward(from, to, loss_of()).detach();
    };
    for (const int64_t example : {from, to - 1}) {
      const auto copies = again([&] { return call_.loss_of_copies(from, to, example); });
      if (same_loss(copies, losses.detach(), example - from)) continue;
      const auto repeated = again([&] { return call_.loss_of(from, to); });
      TORCH_CHECK_VALUE(
          same_loss(repeated, losses.detach(), example - from),
          "the loss function does not give the same losses for the same batch, so that "
          "whether it mixes examples cannot be checked; let it draw random numbers from "
          "LibTorch's generators only, or set check_mixing to false");
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "the loss of an example changes with what is in the other examples (",
          losses[example - from].item<double>(), " becomes ", copies[example - from].item<double>(),
          "), so that no clipping bounds what one example does; look for statistics over the "
          "batch, "
          "such as a mean or a norm over dimension 0, also detached ones, and take them over each "
          "example");
    }
    rng_after.restore();
    buffers_after.restore();
    stage_.found_unmixed();
    return losses;
  }

  TrainingStep& step_;
  const PrivateCall& call_;
  privacy::PrivateGradients& stage_;
  Loss total_ = {};
};

StepResult TrainingStep::run_private(const PrivateCall& call) {
  auto& stage = *options_.gradient->gradients_;
  PrivateParts parts(*this, call);
  const auto before = window_;
  const auto kept = recovery_ ? stage.snapshot() : privacy::PrivateGradients::Snapshot{};
  const auto begin = [&] {
    window_ = before;
    if (recovery_) stage.restore(kept);
    parts.begin();
    window_.add_empty();
    if (call.size == 0 && recovery_) recovery_->run_forward([] {});
  };
  const auto run = [&](int64_t from, int64_t to) {
    const auto go = [&] { parts.run(from, to); };
    from == 0 && recovery_ ? recovery_->run_forward(go) : go();
    return at::Tensor();  // nothing is left to backpropagate
  };
  const auto attempt = [&] {
    if (recovery_ && recovery_->splitter && call.size >= 0) {
      recovery_->splitter->run({.size = call.size, .begin = begin, .forward = run});
      return;
    }
    begin();
    if (call.size != 0) run(0, call.size);
  };
  try {
    recovery_ ? recovery_->run(attempt) : attempt();
  } catch (...) {
    if (recovery_) {
      window_ = before;
      stage.restore(kept);
    } else {
      drop_private_window();
    }
    throw;
  }
  try {
    return end_of_window(parts.total());
  } catch (...) {
    drop_private_window();  // nothing of it was released
    throw;
  }
}

void TrainingStep::drop_private_window() {
  window_.reset();
  options_.gradient->gradients_->drop_window();
}

}  // namespace torchlore
