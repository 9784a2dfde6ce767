#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <concepts>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "torchlore/core/bytes.hpp"
#include "torchlore/core/reducer.hpp"
#include "torchlore/memory/error_kind.hpp"
#include "torchlore/memory/visit_tensors.hpp"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace torchlore {

/// A time span in seconds; takes any of the standard's (`std::chrono::minutes(5)`).
using Seconds = std::chrono::duration<double>;

/// An attempt that failed, as `RetryOptions::on_failure` is told.
struct FailedAttempt {
  int64_t attempt = 0;                    ///< which one, from 1
  ErrorKind kind = ErrorKind::permanent;  ///< what the error was sorted as
  std::string error = {};                 ///< its text, without a backtrace
  Seconds elapsed{0};                     ///< since the first attempt began
  bool retried = false;                   ///< whether another attempt follows
  Seconds wait{0};                        ///< how long it waits for
};

/// Where `retry` has its time and chance from; what is not set is the system's.
struct RetryClock {
  std::function<Seconds()> now = {};        ///< time since any fixed point
  std::function<void(Seconds)> sleep = {};  ///< waits
  std::function<double()> random = {};      ///< uniform in [0, 1); never LibTorch's generators
};

/// Options of `retry`.
struct RetryOptions {
  /// Retries after the first attempt, 0 or more: f runs at most 1 + max_retries times.
  int64_t max_retries = 3;
  /// Retry n waits for a random time below first_wait · factor^(n-1), and below max_wait.
  Seconds first_wait{0.1};
  /// What the bound grows by from one retry to the next; >= 1.
  double factor = 2;
  /// The bound's cap.
  Seconds max_wait{30};
  /// No retry begins later than this after the start of the first attempt.
  std::optional<Seconds> deadline = std::nullopt;
  /// Its gradients and buffers are put back before a retry. Costs a copy of the buffers, and of the
  /// gradients that are defined when the first attempt begins.
  const torch::nn::Module* model = nullptr;
  /// Their parameters, gradients, state and options are put back. Needed only if f steps them, for it
  /// costs a copy of all that: with Adam, three times the parameters.
  std::vector<torch::optim::Optimizer*> optimizers = {};
  /// Other tensors that f changes in place; their values are put back. Costs a copy of each.
  std::vector<at::Tensor> tensors = {};
  /// Runs f twice where once would do, and compares what it returns and what it changed bit for bit:
  /// finds a closure that is not repeatable. For tests, and for one run when in doubt.
  bool verify = false;
  /// Sorts errors; only those that are not `permanent` are retried.
  std::function<ErrorKind(const std::exception&)> classify = classify_error;
  /// Told of each failed attempt, before the wait. What it throws ends the retries. The place to
  /// rebuild a process group that a time-out has left unusable.
  std::function<void(const FailedAttempt&)> on_failure = {};
  /// Ranks: all retry if one has to, and all give up if one does. f must not talk to other ranks
  /// itself then.
  Reducer reducer = {};
  /// For tests: no waiting, no chance.
  RetryClock clock = {};
};

/// What the copies that `retry` makes before its first attempt would take now.
/// @throws c10::NotImplementedError for an optimizer whose state is not known (LBFGS).
Bytes retry_bytes(const RetryOptions& options);

namespace detail {

/// The attempts of one call.
class Attempts {
 public:
  /// Checks the options. `gradients_of`: parameters whose gradients are put back too.
  explicit Attempts(const RetryOptions& options, std::vector<at::Tensor> gradients_of = {});
  ~Attempts();
  Attempts(const Attempts&) = delete;
  Attempts& operator=(const Attempts&) = delete;

  /// Before each attempt, where its errors are caught: the first time, saves what is to be put back.
  void begin();
  /// After it. False: run `recover` and try again. Throws when there is no retry.
  bool succeeded(const std::exception_ptr& error);
  /// Outside of any catch block, and when the attempt's results are gone.
  void recover();

  /// `verify`: after the first success, then after the second.
  void keep(const std::vector<at::Tensor>& result);
  void compare(const std::vector<at::Tensor>& result) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// What an attempt returned: nothing, a value (which may be move-only) or a reference.
template <typename R>
class Returned {
 public:
  template <typename F>
  void run(F& f) {
    if constexpr (std::is_void_v<R>) {
      f();
    } else if constexpr (std::is_reference_v<R>) {
      value_ = std::addressof(f());
    } else {
      value_.emplace(f());
    }
  }
  std::vector<at::Tensor> tensors() {
    std::vector<at::Tensor> all;
    if constexpr (!std::is_void_v<R>) {
      visit_tensors(*value_, [&](const at::Tensor& tensor) { all.push_back(tensor); });
    }
    return all;
  }
  R take() {
    if constexpr (!std::is_void_v<R>) return static_cast<R&&>(*value_);
  }

 private:
  using Pointer = std::add_pointer_t<std::remove_reference_t<R>>;
  using Value = std::conditional_t<std::is_object_v<R>, R, char>;
  std::conditional_t<std::is_reference_v<R>, Pointer, std::optional<Value>> value_{};
};

}  // namespace detail

/// Calls `f()` and returns what it returns; if it fails for a reason that may pass, tries again.
///
/// ```cpp
/// auto y = torchlore::retry([=] { return model->forward(x); }, {.max_retries = 3});
/// torchlore::retry([&] { loss_of(batch).backward(); }, {.model = &*model});
/// ```
/// Which errors may pass says `classify_error`, or a function of yours. All others are rethrown at
/// once. Before a retry, and outside of the catch block:
/// 1. results and graph of the failed attempt are dropped, also what autograd's engine still holds
///    of a failed backward; the accelerator is waited for, caches are emptied;
/// 2. a random time passes (exponential back-off with full jitter);
/// 3. the random generators, and the gradients, buffers, optimizers and tensors named in the options
///    are put back bit for bit. A gradient that was undefined is undefined again.
///
/// When it gives up, the same is put back, and the last error is rethrown as it is: of its own type,
/// with the history of the attempts as its context (`what()`; a type without context, such as
/// std::bad_alloc, leaves it in a warning).
///
/// `f` must be repeatable: it may not consume its captures, advance an iterator, or change what is
/// not named in the options. `verify` finds most that is not. A lambda that captures a module holder
/// by value must be `mutable` to call `forward`.
/// @param f       any callable; its result may be void, a reference or move-only.
/// @param options see RetryOptions.
/// @throws c10::ValueError for options out of range, and with `verify` for a closure that is not
///         repeatable; what f throws; c10::Error if another rank gave up.
/// @note Costs, where nothing fails, a copy of the generators' states (5 kB on the CPU, 16 bytes a
///       CUDA device) and of what the options name; see retry_bytes. Host syncs: none of its own.
/// Source (jitter): Brooker (2015), Exponential Backoff And Jitter, AWS Architecture Blog.
template <std::invocable F>
std::invoke_result_t<F&> retry(F&& f, const RetryOptions& options = {}) {
  detail::Attempts attempts(options);
  for (;; attempts.recover()) {
    detail::Returned<std::invoke_result_t<F&>> returned;
    std::exception_ptr error;
    try {
      attempts.begin();
      returned.run(f);
    } catch (...) {
      error = std::current_exception();
    }
    if (!attempts.succeeded(error)) continue;
    if (options.verify) {
      attempts.keep(returned.tensors());
      returned = {};
      returned.run(f);
      attempts.compare(returned.tensors());
    }
    return returned.take();
  }
}

}  // namespace torchlore
