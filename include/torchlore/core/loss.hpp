#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace torchlore {

/// How many things (tokens, samples) a loss sums over: a number, or a 0-d tensor that need not
/// leave its device.
class Count {
 public:
  /// A count known on the host.
  template <std::integral T>
  Count(T value) : value_(static_cast<int64_t>(value)) {}
  /// @throws c10::ValueError unless `value` holds exactly one element.
  Count(at::Tensor value);

  /// Whether the count is a plain number, which costs no host sync to read.
  bool on_host() const { return !tensor_.defined(); }
  /// The number. Host syncs: 1 if the count is a tensor on an accelerator.
  int64_t value() const;
  /// The count as a 0-d float64 tensor on the host, or on its own device. Host syncs: 0.
  at::Tensor tensor() const;

 private:
  int64_t value_ = 0;
  at::Tensor tensor_;
};

/// A loss that keeps its sum and its count apart, so that windows and splits can be weighed right:
/// the mean of a window is the sum of sums over the sum of counts, not the mean of means.
struct Loss {
  at::Tensor sum;   ///< 0-d, differentiable.
  Count count = 0;  ///< tokens or samples behind the sum; 0 is allowed (nothing to learn from).
};

/// What a loss function may return: a 0-d mean, a `Loss`, or one loss per example [B].
template <typename T>
concept LossLike = std::same_as<std::remove_cvref_t<T>, at::Tensor> ||
    std::derived_from<std::remove_cvref_t<T>, at::Tensor> ||
    std::same_as<std::remove_cvref_t<T>, Loss>;

/// A callable that returns a loss.
template <typename F, typename... Arguments>
concept LossFunction =
    std::invocable<F&, Arguments...> && LossLike<std::invoke_result_t<F&, Arguments...>>;

}  // namespace torchlore
