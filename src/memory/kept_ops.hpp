#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/operator_name.h>
#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "torchlore/intercept/saved_tensor_scope.hpp"

namespace c10 {
class OperatorHandle;
}

namespace torchlore::memory {

/// The results of chosen ops of a checkpointed block: kept in the forward pass, and given back in the
/// recomputation in place of running the op.
///
/// It sees ops below autograd, so that autograd records and saves the same either way.
class KeptOps {
 public:
  /// Whether the results of an op, named as "aten::addmm", are kept.
  using Policy = std::function<bool(const std::string& op)>;

  /// @throws c10::Error if another library has taken the dispatch key.
  explicit KeptOps(Policy policy);

  /// Hands the results to the scope for saved tensors that this thread is in. Those that share memory
  /// with one of the block's outputs are given up, since who gets them may change them; whatever needs
  /// them is computed again.
  void save(const std::vector<at::Tensor>& outputs);
  /// Gets the results again, before a recomputation. Its scope lets go of what was not asked for.
  void unpack();

  /// Within it, this thread's ops come here; with nullptr, to nobody.
  class Scope {
   public:
    Scope(KeptOps* ops, bool replay);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope(Scope&&) = delete;
    Scope& operator=(const Scope&) = delete;
    Scope& operator=(Scope&&) = delete;

   private:
    KeptOps* ops_;
    KeptOps* previous_;
    bool previous_replay_;
  };

 private:
  friend void run_kept_op(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack*);

  /// What one op gave: in `results` while it is in use, else in `packed`. With neither it is run again.
  struct Call {
    c10::OperatorName op;
    std::vector<at::Tensor> results;
    std::vector<std::unique_ptr<PackedTensor>> packed;
  };
  /// What to do with an op.
  enum class Kind { pass_on, keep, changes_arguments };

  Kind kind_of(const c10::OperatorHandle& op);
  void record(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack& stack);
  void replay(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack& stack);
  void give_up_written(const c10::OperatorHandle& op, const torch::jit::Stack& stack);
  void give_up(const at::Tensor& tensor);
  void release();

  Policy policy_;
  std::unordered_map<c10::OperatorName, Kind> kinds_;
  std::vector<Call> calls_;
  std::unordered_map<const c10::StorageImpl*, size_t> call_of_;  // in the forward pass
  size_t next_ = 0;
};

}  // namespace torchlore::memory
