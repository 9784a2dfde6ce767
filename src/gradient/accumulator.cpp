#include "torchlore/gradient/accumulator.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

/// The smallest power of two that is `value` or more; 1 for less than 1.
double power_of_two(double value) {
  return static_cast<double>(std::bit_ceil(static_cast<uint64_t>(std::ceil(std::fmax(value, 1)))));
}

void check_scalar(const at::Tensor& loss) {
  TORCH_CHECK_VALUE(loss.defined() && loss.dim() == 0,
                    "a loss must be 0-d (a mean, or the sum of a Loss{sum, count}), but has shape ",
                    loss.defined() ? loss.sizes() : at::IntArrayRef{}, "; reduce it first");
}

void check_sum(const Loss& loss) {
  check_scalar(loss.sum);
  if (!loss.count.on_host()) return;
  TORCH_CHECK_VALUE(loss.count.value() >= 0, "a count must be 0 or more, but is ",
                    loss.count.value());
}

}  // namespace

Accumulate Accumulate::batches(int64_t n) {
  check_count("Accumulate::batches(n)", n);
  return {n, false};
}

Accumulate Accumulate::counts(int64_t n) {
  check_count("Accumulate::counts(n)", n);
  return {n, true};
}

GradientAccumulator::GradientAccumulator(Accumulate window, GradientAccumulatorOptions options)
    : window_(window), options_(std::move(options)) {}

at::Tensor GradientAccumulator::add(const at::Tensor& mean) {
  check_scalar(mean);
  TORCH_CHECK_VALUE(!window_.by_counts(), "a window of ", window_.size(),
                    " counts needs Loss{sum, count}, but got a 0-d mean without a count");
  return add_to_window(Kind::means, mean, 1);
}

at::Tensor GradientAccumulator::add_to_last(const at::Tensor& share) {
  check_scalar(share);
  check_last(Kind::means);
  return normalized(share);
}

at::Tensor GradientAccumulator::add_to_last(const Loss& loss) {
  check_sum(loss);
  check_last(Kind::sums);
  count_in(loss.count);
  return normalized(loss.sum);
}

void GradientAccumulator::check_last(Kind kind) const {
  TORCH_CHECK(kind_ == kind,
              "a part is of the kind of the micro-batch that it belongs to: a mean, "
              "or a Loss{sum, count}; call add() for its first part");
}

at::Tensor GradientAccumulator::add(const Loss& loss) {
  check_sum(loss);
  return add_to_window(Kind::sums, loss.sum, loss.count);
}

void GradientAccumulator::add_empty() {
  check_room(Kind::none);
  choose_normalizer(0);
  ++batches_;
}

void GradientAccumulator::check_room(Kind kind) const {
  TORCH_CHECK(!full(), "the window is full (", batches_,
              " micro-batches): divide by divisor(), step, and call reset() before the next one");
  TORCH_CHECK(
      kind == Kind::none || kind_ == Kind::none || kind == kind_,
      "a window holds means or Loss{sum, count}, not both: their weights cannot be compared");
}

at::Tensor GradientAccumulator::add_to_window(Kind kind, const at::Tensor& loss,
                                              const Count& count) {
  check_room(kind);
  choose_normalizer(count);
  kind_ = kind;
  ++batches_;
  count_in(count);
  return normalized(loss);
}

void GradientAccumulator::count_in(const Count& count) {
  agreed_total_ = at::Tensor();
  if (count.on_host()) {
    host_total_ += static_cast<double>(count.value());
  } else {
    const auto counted = count.tensor();
    device_total_ = device_total_.defined() ? device_total_ + counted : counted;
  }
  if (window_.by_counts()) global_total_ += sum_over_ranks(static_cast<double>(count.value()));
}

at::Tensor GradientAccumulator::normalized(const at::Tensor& loss) const {
  return normalizer_ == 1 ? loss : loss / normalizer_;
}

double GradientAccumulator::sum_over_ranks(double value) const {
  if (options_.reducer.is_identity()) return value;
  auto tensor = at::scalar_tensor(value, at::kDouble);
  options_.reducer.all_reduce_(tensor, ReduceOp::sum);
  return tensor.item<double>();
}

/// Means: the number of micro-batches. Sums: an estimate of the window's total count. All ranks
/// take the largest, since their gradients are added up.
void GradientAccumulator::choose_normalizer(const Count& first) {
  if (normalizer_ != 0) return;
  double estimate = static_cast<double>(window_.size());
  if (!window_.by_counts()) estimate *= static_cast<double>(std::max<int64_t>(first.value(), 1));
  auto largest = at::scalar_tensor(power_of_two(estimate), at::kDouble);
  options_.reducer.all_reduce_(largest, ReduceOp::max);
  normalizer_ = largest.item<double>();
}

bool GradientAccumulator::full() const {
  if (window_.by_counts()) return global_total_ >= static_cast<double>(window_.size());
  return batches_ >= window_.size();
}

const at::Tensor& GradientAccumulator::total_over_ranks() const {
  if (!agreed_total_.defined()) {
    agreed_total_ = device_total_.defined() ? device_total_ + host_total_
                                            : at::scalar_tensor(host_total_, at::kDouble);
    options_.reducer.all_reduce_(agreed_total_, ReduceOp::sum);
  }
  return agreed_total_;
}

bool GradientAccumulator::weighs_nothing() const {
  if (options_.reducer.is_identity() && !device_total_.defined()) return host_total_ == 0;
  const auto& total = total_over_ranks();
  return total.is_cpu() && total.item<double>() == 0;
}

at::Tensor GradientAccumulator::divisor() const {
  // The power of two, and what averaging over ranks has divided by already.
  double divided = std::fmax(normalizer_, 1);
  if (options_.averaged_over_ranks) divided *= static_cast<double>(options_.reducer.world_size());
  if (options_.reducer.is_identity() && !device_total_.defined()) {
    return at::scalar_tensor(host_total_ > 0 ? host_total_ / divided : 1.0, at::kDouble);
  }
  const auto& total = total_over_ranks();
  return at::where(total > 0, total / divided, at::ones_like(total));
}

void GradientAccumulator::reset() {
  kind_ = Kind::none;
  batches_ = 0;
  host_total_ = 0;
  device_total_ = at::Tensor();
  agreed_total_ = at::Tensor();
  global_total_ = 0;
}

void GradientAccumulator::set_window(Accumulate window) {
  TORCH_CHECK(empty(), "the window can only be changed between windows, but ", batches_,
              " micro-batches are in it; finish the window and call reset() first");
  window_ = window;
  normalizer_ = 0;
}

StateDict GradientAccumulator::state_dict() const {
  TORCH_CHECK(empty(), "cannot save inside a window (", batches_,
              " micro-batches are in it), because its gradients would be lost; save after a step, "
              "or finish the window first");
  return {{"window_size", state_value(window_.size())},
          {"by_counts", state_value(int64_t{window_.by_counts()})},
          {"normalizer", state_value(normalizer_)}};
}

void GradientAccumulator::load_state_dict(const StateDict& state) {
  const auto size = state_int(state, "window_size");
  const bool by_counts = state_int(state, "by_counts") != 0;
  const double normalizer = state_double(state, "normalizer");
  window_ = by_counts ? Accumulate::counts(size) : Accumulate::batches(size);
  normalizer_ = normalizer;
  reset();
}

}  // namespace torchlore
