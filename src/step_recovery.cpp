#include "step_recovery.hpp"

#include <ATen/TensorOperators.h>

#include "memory/other_rank.hpp"
#include "torchlore/core/parameters.hpp"

namespace torchlore {

namespace detail {

Loss sum_of_examples(const at::Tensor& losses) {
  TORCH_CHECK_VALUE(losses.defined() && losses.dim() == 1,
                    "a loss function must return a 0-d mean, a Loss{sum, count} or one loss per "
                    "example [B], but returned ",
                    losses.defined() ? c10::str("shape ", losses.sizes()) : "an undefined tensor");
  return {losses.sum(), losses.size(0)};
}

}  // namespace detail

namespace {

using AnyLoss = std::variant<at::Tensor, Loss>;

/// The losses of a micro-batch's parts, added up.
struct PartSum {
  Loss loss = {};

  void add(const at::Tensor& sum, const Count& count) {
    loss.sum = loss.sum.defined() ? loss.sum + sum.detach() : sum.detach();
    loss.count = loss.count.on_host() && count.on_host()
                     ? Count(loss.count.value() + count.value())
                     : Count(loss.count.tensor() + count.tensor());
  }
};

/// Counts a part in and gives the tensor to backpropagate.
at::Tensor add_part(GradientAccumulator& window, const AnyLoss& part, double share, bool first,
                    PartSum& total) {
  const auto* tensor = std::get_if<at::Tensor>(&part);
  if (tensor != nullptr && tensor->defined() && tensor->dim() == 0) {
    const auto mean = *tensor * share;
    total.add(mean, first ? 1 : 0);
    return first ? window.add(mean) : window.add_to_last(mean);
  }
  const auto loss = tensor != nullptr ? detail::sum_of_examples(*tensor) : std::get<Loss>(part);
  total.add(loss.sum, loss.count);
  return first ? window.add(loss) : window.add_to_last(loss);
}

}  // namespace

TrainingStep::Recovery::Recovery(TrainingStepOptions& options,
                                 const std::vector<torch::optim::Optimizer*>& optimizers)
    : retry_(options.retry), ranks_(options.reducer), any_failed_(options.reducer) {
  const auto& ranks = options.reducer;
  if (options.retry) {
    if (options.retry->reducer.is_identity()) options.retry->reducer = ranks;
    detail::Attempts check(*options.retry);
  }
  if (options.split) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        ranks.is_identity() || !options.accumulate.by_counts(),
        "split cannot be used on several ranks with a window of counts: ranks would count unequal "
        "numbers of parts; measure the window in micro-batches (Accumulate::batches)");
    if (options.split->reducer.is_identity()) options.split->reducer = ranks;
    splitter.emplace(*options.split);
  }
  for (const auto* optimizer : optimizers) {
    ParameterView(*optimizer).for_each([&](const at::Tensor& p) { parameters_.push_back(p); });
  }
}

void TrainingStep::Recovery::run(const std::function<void()>& attempt) {
  if (!retry_) return attempt();
  detail::Attempts attempts(*retry_, parameters_);
  for (;; attempts.recover()) {
    std::exception_ptr error;
    try {
      attempts.begin();
      attempt();
    } catch (...) {
      error = std::current_exception();
    }
    if (attempts.succeeded(error)) return;
  }
}

void TrainingStep::Recovery::run_forward(const std::function<void()>& forward) {
  if (ranks_.is_identity()) return forward();
  std::exception_ptr error;
  try {
    forward();
  } catch (...) {
    error = std::current_exception();
  }
  const bool any_failed = any_failed_(error ? 1 : 0) != 0;
  if (error) std::rethrow_exception(error);
  if (any_failed) {
    throw memory::OtherRankFailed("the forward pass of another rank failed");
  }
}

const SizeSearch* TrainingStep::sizes() const {
  return recovery_ && recovery_->splitter ? &recovery_->splitter->sizes() : nullptr;
}

StepResult TrainingStep::run_recovering(int64_t size, const PartLoss& loss_of, bool may_split) {
  const auto before = window_;
  PartSum total;
  bool dropped = false;
  const auto begin = [&] {
    window_ = before;
    total = {};
    if (size > 0) return;
    recovery_->run_forward([] {});
    window_.add_empty();
  };
  const auto forward_part = [&](int64_t from, int64_t to) {
    AnyLoss part;
    const auto run = [&] { part = loss_of(from, to); };
    from == 0 ? recovery_->run_forward(run) : run();
    if (to - from < size) {
      const auto share = static_cast<double>(to - from) / static_cast<double>(size);
      return scaled(add_part(window_, part, share, from == 0, total));
    }
    auto counted = std::visit([&](const auto& loss) { return count(loss); }, part);
    total.loss = counted.loss;
    dropped = !counted.tensor.defined();
    return dropped ? counted.tensor : scaled(counted.tensor);
  };
  try {
    recovery_->run([&] {
      if (may_split) {
        recovery_->splitter->run({.size = size, .begin = begin, .forward = forward_part});
        return;
      }
      begin();
      const auto loss = size > 0 ? forward_part(0, size) : at::Tensor();
      if (loss.defined()) loss.backward();
    });
  } catch (...) {
    window_ = before;  // gradients are back too: by retry, or by the splitter
    throw;
  }
  try {
    if (guard_ && size > 0 && !dropped) guard_->add(total.loss);
    return end_of_window(total.loss);
  } catch (...) {
    window_.reset();
    if (guard_) guard_->reset_window();
    throw;
  }
}

}  // namespace torchlore
