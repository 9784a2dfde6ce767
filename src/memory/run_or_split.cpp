#include "torchlore/memory/run_or_split.hpp"

#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>

#include "attempt_state.hpp"
#include "free_memory.hpp"
#include "gradient_stash.hpp"
#include "other_rank.hpp"
#include "rethrow_with.hpp"
#include "torchlore/core/error.hpp"
#include "torchlore/intercept/op_handler.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

// What ranks agree on after each attempt: the largest of all.
constexpr double kFits = 0;
constexpr double kShrinks = 1;
constexpr double kGivesUp = 2;

constexpr const char* kRefused =
    "the batch was not split: batch norm in training mode takes its statistics over the batch, and "
    "would take them over parts. Accept that by {.batch_statistics = BatchStatistics::of_parts}, "
    "or "
    "put batch norm into eval mode";

struct RefusedBatchNorm : std::exception {
  const char* what() const noexcept override { return kRefused; }
};

/// Sees batch norm before it has changed its running statistics.
struct RefuseBatchNorm : OpHandler {
  bool changes_results() const override { return false; }
  at::Tensor batch_norm(const BatchNormCall& call) override {
    if (call.training) throw RefusedBatchNorm();
    return OpHandler::batch_norm(call);
  }
  /// Statistics of each example, though made of batch norm.
  at::Tensor instance_norm(const BatchNormCall& call) override {
    return OpHandler::instance_norm(call);
  }
};

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  } catch (const std::exception& e) {
    return e.what();
  }
}

}  // namespace

/// One run over all parts of a batch.
class BatchSplitter::Attempt {
 public:
  enum class End : uint8_t { fits, out_of_memory, refused, failed };

  Attempt(const SplitOptions& options, const Job& job, int64_t size)
      : options_(&options), job_(&job), size_(size) {}

  /// Never throws: an error is kept, and all is as before then.
  void run(std::optional<memory::AttemptState>& before, memory::GradientStash& stash) {
    try {
      if (!before) save(before);
      if (job_->begin) job_->begin();
      for (int64_t from = 0; from < job_->size; from += size_) {
        run_part(from, std::min(from + size_, job_->size), stash);
      }
      if (job_->end) stash.scale_(job_->end());
      return;
    } catch (const RefusedBatchNorm&) {
      end_ = End::refused;
    } catch (const memory::OtherRankFailed&) {
      end_ = End::out_of_memory;
      error_ = std::current_exception();
    } catch (const std::exception& e) {
      const bool memory = options_->classify(e) == ErrorKind::out_of_memory;
      end_ = memory ? End::out_of_memory : End::failed;
      error_ = std::current_exception();
    } catch (...) {
      end_ = End::failed;
      error_ = std::current_exception();
    }
    undo(before, stash);
  }

  void undo(std::optional<memory::AttemptState>& before, memory::GradientStash& stash) const {
    stash.undo();
    if (before) before->restore();
  }

  int64_t size() const { return size_; }
  End end() const { return end_; }
  const std::exception_ptr& error() const { return error_; }

  /// What this rank says to the others.
  double status(const SizeSearch& sizes) const {
    if (end_ == End::fits) return kFits;
    return end_ == End::out_of_memory && sizes.can_shrink(size_) ? kShrinks : kGivesUp;
  }

 private:
  void save(std::optional<memory::AttemptState>& before) const {
    memory::AttemptState state;
    if (options_->model != nullptr) state.add_buffers(*options_->model);
    before = std::move(state);
  }

  void run_part(int64_t from, int64_t to, memory::GradientStash& stash) const {
    at::Tensor loss;
    {
      const bool whole = to - from == job_->size;
      RefuseBatchNorm handler;
      std::optional<OpMode> mode;
      if (!whole && options_->batch_statistics == BatchStatistics::refuse) mode.emplace(handler);
      loss = job_->forward(from, to);
    }
    if (!loss.defined()) return;
    stash.before_backward(loss);
    loss.backward();
  }

  const SplitOptions* options_;
  const Job* job_;
  int64_t size_;
  End end_ = End::fits;
  std::exception_ptr error_;
};

BatchSplitter::BatchSplitter(SplitOptions options)
    : options_(std::move(options)), sizes_(options_.sizes), largest_over_ranks_(options_.reducer) {
  TORCH_CHECK_VALUE(options_.classify != nullptr,
                    "classify must be callable; its default is classify_error");
}

SplitResult BatchSplitter::run(const Job& job) {
  // Ranks with smaller batches use the same size.
  const auto batch = static_cast<int64_t>(largest_over_ranks_(static_cast<double>(job.size)));
  const auto known = sizes_.fits();
  std::optional<memory::AttemptState> before;
  std::vector<Attempt> failed;
  for (auto size = sizes_.choose(batch);; size = shrink(batch, size, failed.back())) {
    memory::GradientStash stash;
    Attempt attempt(options_, job, size);
    attempt.run(before, stash);
    const auto worst = largest_over_ranks_(attempt.status(sizes_));
    if (worst == kFits) {
      stash.join();
      sizes_.fitted(size);
      if (failed.empty() && known > 0 && size > known) announce(known, size, {});
      return {{}, (job.size + size - 1) / size, size};
    }
    if (attempt.end() == Attempt::End::fits) attempt.undo(before, stash);
    failed.push_back(std::move(attempt));
    if (worst == kGivesUp) give_up(batch, failed);
  }
}

int64_t BatchSplitter::shrink(int64_t batch, int64_t size, const Attempt& attempt) {
  memory::free_after_failure();
  const auto next = sizes_.failed(batch, size);
  announce(size, next,
           attempt.error() ? text_of(attempt.error()) : "another rank ran out of memory");
  return next;
}

void BatchSplitter::announce(int64_t from, int64_t to, const std::string& error) const {
  if (options_.on_change) options_.on_change({from, to, error});
}

void BatchSplitter::give_up(int64_t batch, const std::vector<Attempt>& failed) {
  const auto& last = failed.back();
  std::exception_ptr out_of_memory;
  std::string tried;
  for (const auto& attempt : failed) {
    tried += (tried.empty() ? "" : ", ") + std::to_string(attempt.size());
    if (attempt.end() == Attempt::End::out_of_memory) out_of_memory = attempt.error();
  }
  switch (last.end()) {
    case Attempt::End::failed:
      std::rethrow_exception(last.error());
    case Attempt::End::refused:
      sizes_.forget();  // the next batch may fit as a whole
      if (out_of_memory) memory::rethrow_with(out_of_memory, kRefused);
      TORCH_CHECK_NOT_IMPLEMENTED(false, kRefused);
    case Attempt::End::out_of_memory:
      memory::rethrow_with(
          out_of_memory, c10::str("a batch of ", batch,
                                  " was run in parts; those that were tried did not fit: ", tried));
    case Attempt::End::fits:
      break;
  }
  TORCH_CHECK_WITH(OutOfMemoryError, false, "parts of ", last.size(),
                   " went through on this rank, but another rank gave up; the error is there");
}

/// Adds up the losses of parts, and weighs what is backpropagated.
class BatchSplitter::Sum {
 public:
  explicit Sum(int64_t size) : size_(size) {}

  void begin() { *this = Sum(size_); }

  /// The tensor to backpropagate for a part of `count` examples.
  at::Tensor add(const AnyLoss& loss, int64_t count) {
    if (const auto* sum = std::get_if<Loss>(&loss)) return add_sum(*sum, count);
    const auto& tensor = std::get<at::Tensor>(loss);
    if (tensor.defined() && tensor.dim() == 0) return add_mean(tensor, count);
    TORCH_CHECK_VALUE(tensor.defined() && tensor.dim() == 1 && tensor.size(0) == count,
                      "a loss function must return a 0-d mean, a Loss{sum, count} or one loss per "
                      "example [B], but returned ",
                      tensor.defined() ? c10::str("shape ", tensor.sizes()) : "an undefined tensor",
                      " for ", count, " examples");
    return weighed(tensor.sum() / static_cast<double>(size_));
  }

  /// Ends the sum; returns what the gradients are to be multiplied by.
  double end() {
    const double factor = counted_ > 0 ? estimate_ / counted_ : 1;
    if (factor != 1) total_ = total_ * factor;
    return factor;
  }
  const at::Tensor& mean() const { return total_; }

 private:
  at::Tensor add_mean(const at::Tensor& mean, int64_t count) {
    if (count == size_) return weighed(mean);
    return weighed(mean * (static_cast<double>(count) / static_cast<double>(size_)));
  }

  /// The count of the whole is not known before the last part; the first part's is taken for typical.
  at::Tensor add_sum(const Loss& loss, int64_t count) {
    const auto counted = static_cast<double>(loss.count.value());
    TORCH_CHECK_VALUE(counted >= 0, "a count must be 0 or more, but is ", counted);
    if (estimate_ == 0) {
      estimate_ = counted > 0 ? counted * static_cast<double>(size_) / static_cast<double>(count)
                              : static_cast<double>(size_);
    }
    counted_ += counted;
    return weighed(loss.sum / estimate_);
  }

  at::Tensor weighed(at::Tensor loss) {
    total_ = total_.defined() ? total_ + loss.detach() : loss.detach();
    return loss;
  }

  int64_t size_;
  at::Tensor total_;
  double estimate_ = 0;  // of the count of the whole batch; 0: there are no counts
  double counted_ = 0;
};

SplitResult BatchSplitter::run(int64_t size,
                               const std::function<AnyLoss(int64_t, int64_t)>& loss_of) {
  Sum sum(size);
  auto result = run(
      {.size = size,
       .begin = [&] { sum.begin(); },
       .forward = [&](int64_t from, int64_t to) { return sum.add(loss_of(from, to), to - from); },
       .end = [&] { return sum.end(); }});
  result.loss = sum.mean();
  return result;
}

}  // namespace torchlore
