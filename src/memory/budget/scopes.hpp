#pragma once

#include <memory>

#include "../../intercept/hook_factory.hpp"
#include "state.hpp"
#include "torchlore/intercept/op_handler.hpp"

namespace torchlore::budget {

/// Shows a state the ops of its scope.
class Recorder final : public OpHandler {
 public:
  explicit Recorder(std::shared_ptr<State> state) : state_(std::move(state)) {}
  bool changes_results() const override { return false; }
  void boxed(OpCall& call) override;

 private:
  std::shared_ptr<State> state_;
};

/// Shows a state what autograd saves in its scope.
class Saver final : public intercept::HookFactory {
 public:
  explicit Saver(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() override;
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override;
  const State* state() const { return state_.get(); }

 private:
  std::shared_ptr<State> state_;
};

/// Whether autograd asks the state first about what this thread's ops save. A scope inside may take
/// some of it, so that the state cannot count them.
bool saves_come_to(const State& state);

}  // namespace torchlore::budget
