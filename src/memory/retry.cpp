#include "torchlore/memory/retry.hpp"

#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <thread>

#include "attempt_state.hpp"
#include "free_memory.hpp"
#include "other_rank.hpp"
#include "rethrow_with.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

void check(const RetryOptions& options) {
  TORCH_CHECK_VALUE(options.max_retries >= 0, "max_retries must be 0 or more, but is ",
                    options.max_retries);
  check_not_negative("first_wait", options.first_wait.count());
  check_not_negative("max_wait", options.max_wait.count());
  TORCH_CHECK_VALUE(std::isfinite(options.factor) && options.factor >= 1,
                    "factor must be a finite number, 1 or above, but is ", options.factor);
  if (options.deadline) check_not_negative("deadline", options.deadline->count());
  TORCH_CHECK_VALUE(options.classify != nullptr,
                    "classify must be callable; its default is "
                    "classify_error");
  for (const auto* optimizer : options.optimizers) {
    TORCH_CHECK_VALUE(optimizer != nullptr, "optimizers of a retry must not be null pointers");
  }
}

RetryClock with_defaults(RetryClock clock) {
  if (!clock.now)
    clock.now = [] { return Seconds(std::chrono::steady_clock::now().time_since_epoch()); };
  if (!clock.sleep) clock.sleep = [](Seconds time) { std::this_thread::sleep_for(time); };
  if (!clock.random) {
    clock.random = [] {
      thread_local std::mt19937_64 engine{std::random_device{}()};
      return std::uniform_real_distribution<double>(0, 1)(engine);
    };
  }
  return clock;
}

std::unique_ptr<memory::AttemptState> save(const RetryOptions& options,
                                           const std::vector<at::Tensor>& gradients_of) {
  auto state = std::make_unique<memory::AttemptState>();
  state->add_gradients(gradients_of);
  if (options.model != nullptr) state->add_module(*options.model);
  for (auto* optimizer : options.optimizers) state->add_optimizer(*optimizer);
  for (const auto& tensor : options.tensors) state->add_value(tensor);
  return state;
}

/// The text and the kind of an error.
FailedAttempt look_at(const std::exception_ptr& error, const RetryOptions& options) {
  FailedAttempt failed;
  try {
    std::rethrow_exception(error);
  } catch (const memory::OtherRankFailed& e) {
    failed.error = e.what_without_backtrace();
    failed.kind = ErrorKind::out_of_memory;  // if that rank gives up, all do
  } catch (const c10::Error& e) {
    failed.error = e.what_without_backtrace();
    failed.kind = options.classify(e);
  } catch (const std::exception& e) {
    failed.error = e.what();
    failed.kind = options.classify(e);
  } catch (...) {
    failed.error = "not a std::exception";
  }
  return failed;
}

std::string history_of(const std::vector<FailedAttempt>& attempts, const char* reason) {
  std::ostringstream text;
  text << "retry gave up after " << attempts.size() << " attempt"
       << (attempts.size() > 1 ? "s" : "") << ": " << reason;
  for (const auto& failed : attempts) {
    text << "; attempt " << failed.attempt << " at " << failed.elapsed.count() << " s: ";
    const bool repeats = failed.attempt > 1 &&
                         failed.error == attempts[static_cast<size_t>(failed.attempt) - 2].error;
    constexpr size_t kLongest = 200;
    text << (repeats ? "the same" : failed.error.substr(0, kLongest));
  }
  return text.str();
}

bool same_values(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  return at::equal(a, b) || (a.is_floating_point() && at::allclose(a, b, 0, 0, /*equal_nan=*/true));
}

}  // namespace

Bytes retry_bytes(const RetryOptions& options) { return save(options, {})->bytes(); }

namespace detail {

struct Attempts::State {
  const RetryOptions& options;
  std::vector<at::Tensor> gradients_of;
  RetryClock clock;
  Seconds start;
  LargestOverRanks worst_of_ranks;  // 0 no error, 1 an error to retry, 2 one to give up for
  std::unique_ptr<memory::AttemptState> before;
  std::vector<FailedAttempt> failures = {};
  Seconds wait{0};
  std::vector<at::Tensor> kept = {};
  std::exception_ptr last = {};  // the error to retry after

  /// Why there is no retry; null if there is one, and `wait` is set.
  const char* reason_to_give_up(const FailedAttempt& failed) {
    if (failed.kind == ErrorKind::permanent) return "the last error is not one that may pass";
    const auto retries = static_cast<int64_t>(failures.size());
    if (retries >= options.max_retries) return "no retries are left";
    const double bound =
        options.first_wait.count() * std::pow(options.factor, static_cast<double>(retries));
    wait = std::min(Seconds(bound), options.max_wait) * clock.random();
    if (options.deadline && failed.elapsed + wait > *options.deadline) {
      return "the deadline has come";
    }
    return nullptr;
  }

  void restore() {
    if (before) before->restore();
  }

  /// Ends the retries with the error: everything back as far as that is possible.
  [[noreturn]] void give_up(const std::exception_ptr& error, const char* reason) {
    try {
      restore();
    } catch (const std::exception& e) {
      TORCH_WARN("what a failed attempt changed could not be put back: ", e.what());
    }
    // Alone, a permanent error says all there is to say.
    const bool alone = failures.size() == 1 &&
                       (failures[0].kind == ErrorKind::permanent || options.max_retries == 0);
    if (alone) std::rethrow_exception(error);
    memory::rethrow_with(error, history_of(failures, reason));
  }

  std::vector<at::Tensor> outcome(const std::vector<at::Tensor>& result) const {
    auto all = before->current();
    all.insert(all.begin(), result.begin(), result.end());
    return all;
  }
};

Attempts::Attempts(const RetryOptions& options, std::vector<at::Tensor> gradients_of) {
  check(options);
  auto clock = with_defaults(options.clock);
  const auto start = clock.now();
  state_ = std::make_unique<State>(State{options, std::move(gradients_of), std::move(clock), start,
                                         LargestOverRanks(options.reducer), nullptr});
}

Attempts::~Attempts() = default;

void Attempts::begin() {
  if (!state_->before) state_->before = save(state_->options, state_->gradients_of);
}

bool Attempts::succeeded(const std::exception_ptr& error) {
  auto& s = *state_;
  const char* reason = nullptr;
  if (error) {
    auto failed = look_at(error, s.options);
    failed.attempt = static_cast<int64_t>(s.failures.size()) + 1;
    failed.elapsed = s.clock.now() - s.start;
    reason = s.reason_to_give_up(failed);
    failed.retried = reason == nullptr;
    if (failed.retried) failed.wait = s.wait;
    s.failures.push_back(std::move(failed));
  }
  const double own = !error ? 0 : reason == nullptr ? 1 : 2;
  const double worst = s.worst_of_ranks(own);
  if (error) {
    s.failures.back().retried = worst == 1;
    if (worst != 1) s.failures.back().wait = Seconds(0);
    if (s.options.on_failure) s.options.on_failure(s.failures.back());
  }
  if (worst == 0) return true;
  if (worst == 1) {
    if (!error) s.wait = Seconds(0);
    s.last = error;
    return false;
  }
  if (error) s.give_up(error, reason != nullptr ? reason : "another rank gave up");
  s.restore();
  TORCH_CHECK(false,
              "this rank's attempt went through, but another rank's failed for good; the "
              "error is on that rank");
}

void Attempts::recover() {
  try {
    memory::free_after_failure();
  } catch (const std::exception&) {
    // What synchronising throws says less than the error it came after.
    if (state_->last) state_->give_up(state_->last, "the device does not answer any more");
    throw;
  }
  if (state_->wait > Seconds(0)) state_->clock.sleep(state_->wait);
  state_->restore();
}

void Attempts::keep(const std::vector<at::Tensor>& result) {
  for (const auto& tensor : state_->outcome(result)) {
    state_->kept.push_back(tensor.defined() ? tensor.detach().clone() : at::Tensor());
  }
  state_->restore();
}

void Attempts::compare(const std::vector<at::Tensor>& result) const {
  const auto second = state_->outcome(result);
  TORCH_CHECK_VALUE(second.size() == state_->kept.size(),
                    "the closure of a retry is not repeatable: it returned ", result.size(),
                    " tensors the second time, another number the first");
  for (size_t i = 0; i < second.size(); ++i) {
    TORCH_CHECK_VALUE(same_values(state_->kept[i], second[i]),
                      "the closure of a retry is not repeatable: ",
                      i < result.size() ? c10::str("tensor ", i, " of its result")
                                        : state_->before->name_of(i - result.size()),
                      " differs between two runs from the same state. Let it own what it uses, "
                      "fetch data outside "
                      "of it, and name what it changes in the options");
  }
}

}  // namespace detail
}  // namespace torchlore
