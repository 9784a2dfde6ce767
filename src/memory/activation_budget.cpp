#include "torchlore/memory/activation_budget.hpp"

#include <c10/util/Exception.h>

#include <mutex>

#include "../intercept/frame.hpp"
#include "../intercept/hook_factory.hpp"
#include "budget/scopes.hpp"
#include "budget/state.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"

namespace torchlore {
namespace {

using budget::Recorder;
using budget::Saver;
using budget::State;

std::shared_ptr<State> checked_state(Bytes limit, ActivationBudgetOptions options) {
  TORCH_CHECK_VALUE(limit.count() >= 0,
                    "ActivationBudget needs a budget of 0 bytes or more, but got ", limit.count());
  for (auto* frame = intercept::innermost; frame != nullptr; frame = frame->outer.get()) {
    TORCH_CHECK(!frame->callable() || !frame->changes_results,
                "ActivationBudget was opened inside an OpMode whose handler changes results; what "
                "is dropped could not be computed again as it was. Open the budget first and the "
                "mode inside it, or let the handler's changes_results() return false if it only "
                "looks");
  }
  return std::make_shared<State>(limit, std::move(options));
}

}  // namespace

struct ActivationBudget::Scope {
  Scope(Bytes limit, ActivationBudgetOptions options)
      : state(checked_state(limit, std::move(options))),
        saver(std::make_shared<Saver>(state)),
        saves(saver),
        ops(std::make_shared<Recorder>(state)),
        frame(intercept::innermost),
        outer(State::innermost()) {
    State::innermost() = state.get();
  }

  /// Whether this is the scope that its thread entered last.
  bool innermost() const {
    return State::innermost() == state.get() && intercept::innermost == frame &&
           intercept::innermost_saved_tensor_handler() == saver.get();
  }

  std::shared_ptr<State> state;
  std::shared_ptr<Saver> saver;
  SavedTensorScope saves;
  OpMode ops;
  const intercept::Frame* frame;
  State* outer;
};

ActivationBudget::ActivationBudget(Bytes budget, ActivationBudgetOptions options)
    : scope_(std::make_unique<Scope>(budget, std::move(options))) {}

ActivationBudget::~ActivationBudget() {
  if (scope_->innermost()) {
    State::innermost() = scope_->outer;
    scope_->state->close();
    return;
  }
  TORCH_WARN(
      "an ActivationBudget was destroyed before a scope inside it, or on another thread than its "
      "own; it records no more. End scopes on their thread, innermost first");
  scope_->state->close();
  // The thread and the scopes inside still go through it, so it stays for ever.
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::unique_ptr<Scope>>;
  const std::lock_guard<std::mutex> lock(mutex);
  kept->push_back(std::move(scope_));
}

std::shared_ptr<const ActivationBudgetStats> ActivationBudget::stats() const {
  return scope_->state->stats();
}

}  // namespace torchlore
