#include "torchlore/gradient/spike_guard.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <torch/optim/optimizer.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "spike_detector.hpp"
#include "torchlore/core/error.hpp"
#include "training_snapshot.hpp"

namespace torchlore {
namespace {

using torch::optim::Optimizer;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_above(const char* name, double value, double least) {
  TORCH_CHECK_VALUE(value > least, name, " must be above ", least, ", but is ", value,
                    "; use infinity to leave it out");
}

void check_options(const SpikeGuardOptions& o) {
  check_above("jump", o.jump, 1);
  check_above("z_threshold", o.z_threshold, 0);
  TORCH_CHECK_VALUE(o.warmup >= 2, "warmup must be 2 or more, but is ", o.warmup,
                    "; one loss has no spread");
  TORCH_CHECK_VALUE(o.window >= o.warmup, "window must be at least warmup (", o.warmup,
                    "), but is ", o.window);
  check_positive("min_spread", o.min_spread);
  check_not_negative("clips", static_cast<double>(o.clips));
  check_not_negative("skips", static_cast<double>(o.skips));
  check_positive("clip_factor", o.clip_factor);
  check_count("patience", o.patience);
  check_not_negative("snapshot_every", static_cast<double>(o.snapshot_every));
  TORCH_CHECK_VALUE(o.rate_factor > 0 && o.rate_factor <= 1,
                    "rate_factor must lie in (0, 1], but is ", o.rate_factor);
  check_not_negative("cooldown", static_cast<double>(o.cooldown));
}

void check_optimizers(const std::vector<Optimizer*>& optimizers) {
  TORCH_CHECK_VALUE(!optimizers.empty(), "a SpikeGuard needs at least one optimizer, but got none");
  for (size_t i = 0; i < optimizers.size(); ++i) {
    TORCH_CHECK_VALUE(optimizers[i] != nullptr, "optimizer ", i,
                      " of a SpikeGuard is a null pointer");
  }
}

void check_scalar(const at::Tensor& loss) {
  TORCH_CHECK_VALUE(loss.defined() && loss.numel() == 1,
                    "a SpikeGuard judges one number, the mean loss, but got ",
                    loss.defined() ? c10::str("shape ", loss.sizes()) : "an undefined tensor");
}

const at::Tensor& saved_tensor(const StateDict& state, const char* key) {
  const auto found = state.find(key);
  TORCH_CHECK_VALUE(found != state.end(), "the saved state of a SpikeGuard has no '", key, "'");
  return found->second;
}

}  // namespace

const char* to_string(SpikeAction action) {
  switch (action) {
    case SpikeAction::none:
      return "none";
    case SpikeAction::clip:
      return "clip";
    case SpikeAction::skip:
      return "skip";
    case SpikeAction::roll_back:
      return "roll_back";
  }
  return "?";
}

const char* to_string(SpikeReason reason) {
  switch (reason) {
    case SpikeReason::none:
      return "none";
    case SpikeReason::non_finite:
      return "non_finite";
    case SpikeReason::jump:
      return "jump";
    case SpikeReason::z_score:
      return "z_score";
  }
  return "?";
}

/// What must go on over a save.
struct SpikeCounters {
  int64_t observed = 0;
  int64_t spikes = 0;
  int64_t roll_backs = 0;
  int64_t dropped = 0;
  int64_t in_a_row = 0;    // spikes since the last good loss
  int64_t good_steps = 0;  // since the last roll-back
  bool suspect = false;    // the parameters were stepped since they gave a good loss
  double rate_factor = 1;
};

struct SpikeGuard::Impl {
  Impl(std::vector<Optimizer*> all, SpikeGuardOptions given)
      : options(std::move(given)),
        optimizers(std::move(all)),
        detector(options),
        norms(options.window) {
    check_optimizers(optimizers);
    if (options.snapshot_every > 0) make_snapshot();
  }

  void make_snapshot();
  SpikeVerdict judge(double loss, double norm, bool norm_known);
  void good(SpikeVerdict& verdict, const detail::SpikeDetector::Judgement& judgement);
  void bad(SpikeVerdict& verdict);
  void give_in(const SpikeVerdict& verdict);
  SpikeAction choose(const SpikeVerdict& verdict) const;
  void roll_back();
  void scale_rates(double factor);

  SpikeGuardOptions options;
  std::vector<Optimizer*> optimizers;
  detail::SpikeDetector detector;
  detail::SortedWindow norms;
  SpikeCounters counters;
  SpikeVerdict last;
  // Of the window.
  at::Tensor loss_sum, loss_count;  // 0-d; undefined where nothing was added
  std::optional<double> dropped_loss;
  // Not saved.
  std::unique_ptr<detail::TrainingSnapshot> snapshot;
  detail::TensorCopies buffers;
  bool has_buffers = false;
  int64_t since_snapshot = 0;
  double snapshot_rate_factor = 1;
};

void SpikeGuard::Impl::make_snapshot() {
  try {
    snapshot = std::make_unique<detail::TrainingSnapshot>(optimizers, options.model,
                                                          options.snapshot_on_host);
  } catch (const c10::NotImplementedError& error) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "a SpikeGuard cannot roll this optimizer back (",
                                error.what_without_backtrace(),
                                "); set snapshot_every = 0 to only clip and skip");
  }
}

SpikeVerdict SpikeGuard::Impl::judge(double loss, double norm, bool norm_known) {
  const auto judgement = detector.judge(loss);
  SpikeVerdict verdict{.reason = judgement.reason,
                       .step = counters.observed,
                       .loss = loss,
                       .norm = norm,
                       .level = judgement.level,
                       .z_score = judgement.z_score};
  if (norm_known && !std::isfinite(norm)) verdict.reason = SpikeReason::non_finite;
  ++counters.observed;
  if (verdict.reason == SpikeReason::none) {
    good(verdict, judgement);
    return verdict;
  }
  ++counters.spikes;
  if (++counters.in_a_row <= options.patience) {
    bad(verdict);
  } else {
    give_in(verdict);
    good(verdict, judgement);
  }
  last = verdict;
  if (options.on_spike) options.on_spike(verdict);
  return verdict;
}

/// A good loss: its parameters and buffers are, too.
void SpikeGuard::Impl::good(SpikeVerdict& verdict,
                            const detail::SpikeDetector::Judgement& judgement) {
  const bool calm = detector.calm(judgement);
  verdict.action = SpikeAction::none;
  counters.in_a_row = 0;
  counters.suspect = true;  // by the step that comes now
  detector.remember(verdict.loss);
  if (std::isfinite(verdict.norm)) norms.add(verdict.norm);
  ++counters.good_steps;
  if (counters.rate_factor != 1 && counters.good_steps == options.cooldown) {
    scale_rates(1 / counters.rate_factor);
    counters.rate_factor = 1;
  }
  if (options.model != nullptr) {
    buffers.take(detail::buffers_of(options.model));
    has_buffers = true;
  }
  ++since_snapshot;
  if (!snapshot || !calm) return;
  if (snapshot->taken() && since_snapshot < options.snapshot_every) return;
  snapshot->take();
  snapshot_rate_factor = counters.rate_factor;
  since_snapshot = 0;
}

void SpikeGuard::Impl::bad(SpikeVerdict& verdict) {
  verdict.action = choose(verdict);
  if (verdict.action == SpikeAction::clip) {
    verdict.max_norm = options.clip_factor * norms.percentile(50);
    counters.suspect = true;
  } else if (verdict.action == SpikeAction::roll_back) {
    roll_back();
  } else if (has_buffers) {
    buffers.put_back();
  }
}

/// So many spikes in a row are the new level, if they are numbers at all.
void SpikeGuard::Impl::give_in(const SpikeVerdict& verdict) {
  TORCH_CHECK(verdict.reason != SpikeReason::non_finite, "the loss or the norm of the gradients ",
              "has been inf or NaN for ", options.patience + 1, " steps in a row (loss ",
              verdict.loss, ", norm ", verdict.norm, "), also after ", counters.roll_backs,
              " roll-backs; look at the data, the learning rate, and what computes in 16 bits");
  detector.forget();
  norms.clear();
}

SpikeAction SpikeGuard::Impl::choose(const SpikeVerdict& verdict) const {
  const bool can_clip = verdict.reason == SpikeReason::z_score && std::isfinite(verdict.norm) &&
                        !norms.empty() && norms.percentile(50) > 0;
  const auto clips = can_clip ? options.clips : 0;
  if (counters.in_a_row <= clips) return SpikeAction::clip;
  const bool possible = counters.suspect && snapshot && snapshot->taken();
  return counters.in_a_row > clips + options.skips && possible ? SpikeAction::roll_back
                                                               : SpikeAction::skip;
}

void SpikeGuard::Impl::roll_back() {
  snapshot->put_back();
  // The options that were put back hold the rates of then.
  const double here = counters.rate_factor * options.rate_factor;
  scale_rates(options.scale_rates ? options.rate_factor : here / snapshot_rate_factor);
  counters.rate_factor = here;
  counters.suspect = false;
  counters.good_steps = 0;
  ++counters.roll_backs;
}

void SpikeGuard::Impl::scale_rates(double factor) {
  if (options.scale_rates) return options.scale_rates(factor);
  for (auto* optimizer : optimizers) {
    for (auto& group : optimizer->param_groups()) {
      group.options().set_lr(group.options().get_lr() * factor);
    }
  }
}

SpikeGuard::SpikeGuard(Optimizer& optimizer, SpikeGuardOptions options)
    : SpikeGuard(std::vector<Optimizer*>{&optimizer}, std::move(options)) {}

SpikeGuard::SpikeGuard(std::vector<Optimizer*> optimizers, SpikeGuardOptions options) {
  check_options(options);
  impl_ = std::make_unique<Impl>(std::move(optimizers), std::move(options));
}

SpikeGuard::SpikeGuard(SpikeGuard&&) noexcept = default;
SpikeGuard& SpikeGuard::operator=(SpikeGuard&&) noexcept = default;
SpikeGuard::~SpikeGuard() = default;

SpikeVerdict SpikeGuard::observe(const at::Tensor& loss, const at::Tensor& norm) {
  check_scalar(loss);
  add({loss, 1});
  return observe_window(norm);
}

void SpikeGuard::add(const Loss& loss) {
  check_scalar(loss.sum);
  const auto sum = loss.sum.detach().reshape({});
  const auto count = loss.count.tensor();
  impl_->loss_sum = impl_->loss_sum.defined() ? impl_->loss_sum + sum : sum;
  impl_->loss_count = impl_->loss_count.defined() ? impl_->loss_count + count : count;
}

namespace {

/// What one rank knows of a window.
struct Observation {
  double sum = 0;
  double count = 0;
  double norm = 0;
  bool broken_norm = false;
};

/// To the host, in one go.
std::vector<double> on_host(const std::vector<at::Tensor>& numbers) {
  std::vector<double> values;
  if (std::all_of(numbers.begin(), numbers.end(), [](const auto& t) { return t.is_cpu(); })) {
    for (const auto& t : numbers) values.push_back(t.item().toDouble());
    return values;
  }
  const auto home = std::find_if(numbers.begin(), numbers.end(), [](const auto& t) {
                      return !t.is_cpu();
                    })->device();
  std::vector<at::Tensor> parts;
  for (const auto& t : numbers) parts.push_back(t.detach().reshape({}).to(home, at::kFloat));
  const auto all = at::stack(parts).to(at::kCPU, at::kDouble);
  for (int64_t i = 0; i < all.numel(); ++i) values.push_back(all[i].item<double>());
  return values;
}

void agree(Observation& seen, const Reducer& ranks) {
  if (ranks.is_identity()) return;
  auto sums = at::stack(
      {at::scalar_tensor(seen.sum, at::kDouble), at::scalar_tensor(seen.count, at::kDouble)});
  ranks.all_reduce_(sums, ReduceOp::sum);
  auto largest = at::stack({at::scalar_tensor(seen.broken_norm ? 0 : seen.norm, at::kDouble),
                            at::scalar_tensor(seen.broken_norm ? 1.0 : 0.0, at::kDouble)});
  ranks.all_reduce_(largest, ReduceOp::max);  // what NaN compares to is the backend's choice
  seen = {sums[0].item<double>(), sums[1].item<double>(), largest[0].item<double>(),
          largest[1].item<double>() != 0};
}

}  // namespace

SpikeVerdict SpikeGuard::observe_window(const at::Tensor& norm) {
  auto& impl = *impl_;
  Observation seen;
  std::vector<at::Tensor> numbers;
  if (impl.loss_sum.defined()) numbers = {impl.loss_sum, impl.loss_count};
  if (norm.defined()) numbers.push_back(norm);
  const auto values = on_host(numbers);
  if (impl.loss_sum.defined()) {
    seen.sum = values[0];
    seen.count = values[1];
  } else if (impl.dropped_loss) {
    seen.sum = *impl.dropped_loss;
    seen.count = 1;
  }
  if (norm.defined()) seen.norm = values.back();
  seen.broken_norm = !std::isfinite(seen.norm);
  reset_window();
  agree(seen, impl.options.reducer);
  if (seen.count == 0) return {};  // nothing to learn from, on any rank
  const double agreed = seen.broken_norm || !norm.defined() ? std::nan("") : seen.norm;
  return impl.judge(seen.sum / seen.count, agreed, norm.defined());
}

void SpikeGuard::reset_window() {
  impl_->loss_sum = impl_->loss_count = at::Tensor();
  impl_->dropped_loss.reset();
}

bool SpikeGuard::drop(const at::Tensor& loss) {
  check_scalar(loss);
  auto& impl = *impl_;
  const double value = loss.detach().item().toDouble();
  const auto reason = impl.detector.judge(value).reason;
  const bool bad = reason == SpikeReason::non_finite || reason == SpikeReason::jump;
  const bool any_bad = detail::LargestOverRanks(impl.options.reducer)(bad ? 1 : 0) != 0;
  if (!any_bad) return false;
  impl.dropped_loss = value;
  ++impl.counters.dropped;
  if (impl.has_buffers) impl.buffers.put_back();
  return true;
}

int64_t SpikeGuard::spikes() const { return impl_->counters.spikes; }
int64_t SpikeGuard::roll_backs() const { return impl_->counters.roll_backs; }
int64_t SpikeGuard::dropped() const { return impl_->counters.dropped; }
const SpikeVerdict& SpikeGuard::last_spike() const { return impl_->last; }
double SpikeGuard::rate_factor() const { return impl_->counters.rate_factor; }

Bytes SpikeGuard::snapshot_bytes() const {
  return Bytes(impl_->snapshot ? impl_->snapshot->bytes() : 0);
}

StateDict SpikeGuard::state_dict() const {
  const auto& c = impl_->counters;
  return {
      {"losses", impl_->detector.tensor()},         {"norms", impl_->norms.tensor()},
      {"observed", state_value(c.observed)},        {"spikes", state_value(c.spikes)},
      {"roll_backs", state_value(c.roll_backs)},    {"dropped", state_value(c.dropped)},
      {"in_a_row", state_value(c.in_a_row)},        {"good_steps", state_value(c.good_steps)},
      {"suspect", state_value(int64_t{c.suspect})}, {"rate_factor", state_value(c.rate_factor)}};
}

namespace {

SpikeCounters counters_of(const StateDict& state) {
  SpikeCounters c{.observed = state_int(state, "observed"),
                  .spikes = state_int(state, "spikes"),
                  .roll_backs = state_int(state, "roll_backs"),
                  .dropped = state_int(state, "dropped"),
                  .in_a_row = state_int(state, "in_a_row"),
                  .good_steps = state_int(state, "good_steps"),
                  .suspect = state_int(state, "suspect") != 0,
                  .rate_factor = state_double(state, "rate_factor")};
  for (const auto& [name, value] : {std::pair("observed", c.observed),
                                    {"spikes", c.spikes},
                                    {"roll_backs", c.roll_backs},
                                    {"dropped", c.dropped},
                                    {"in_a_row", c.in_a_row},
                                    {"good_steps", c.good_steps}}) {
    check_not_negative(name, static_cast<double>(value));
  }
  check_positive("rate_factor", c.rate_factor);
  return c;
}

}  // namespace

void SpikeGuard::check_state_dict(const StateDict& state) const {
  counters_of(state);
  impl_->detector.check(saved_tensor(state, "losses"));
  detail::SortedWindow::from(saved_tensor(state, "norms"), impl_->options.window, "norms", 0);
}

void SpikeGuard::load_state_dict(const StateDict& state) {
  check_state_dict(state);
  auto& impl = *impl_;
  impl.counters = counters_of(state);
  impl.detector.load(saved_tensor(state, "losses"));
  impl.norms =
      detail::SortedWindow::from(saved_tensor(state, "norms"), impl.options.window, "norms", 0);
  impl.last = {};
  reset_window();
  // They are of another run.
  if (impl.snapshot) impl.snapshot->drop();
  impl.buffers.drop();
  impl.has_buffers = false;
}

}  // namespace torchlore
