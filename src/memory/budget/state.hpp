#pragma once

#include <ATen/core/stack.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "replay.hpp"
#include "store.hpp"
#include "torchlore/memory/activation_budget.hpp"

namespace torchlore {
class OpCall;
}

namespace torchlore::budget {

class Draft;

/// One ActivationBudget: what its scope, the graph's saved tensors and backward share. It lives as
/// long as any of them.
class State : public std::enable_shared_from_this<State> {
 public:
  State(Bytes limit, ActivationBudgetOptions options);

  /// Runs an op, and records it.
  void run(OpCall& call, const OpFacts& facts);
  /// Takes a tensor that autograd saves.
  void pack(Saved& saved, const at::Tensor& tensor);
  /// The tensor again, for backward.
  at::Tensor unpack(Saved& saved);
  /// The graph no longer needs it.
  void release(Saved& saved);
  /// No more ops come.
  void close();

  /// Whether this thread's ops are this state's to record: its scope is the innermost one, and
  /// this is not backward.
  bool records_here() const;
  std::shared_ptr<const ActivationBudgetStats> stats() const { return store_.shared_stats(); }

  /// The state whose scope is the innermost on this thread.
  static State*& innermost();

 private:
  bool trusts(const OpFacts& facts) const;
  void check_floor() const;
  void start_node(const Saved& saved);
  void end_node();
  void bring_in(Saved& saved);
  c10::Storage in_use(const Value& value) const;
  void verify(Saved& saved, const at::Tensor& tensor);

  const ActivationBudgetOptions options_;
  // Recursive: what is dropped under the lock may be the last owner of another graph of ours.
  std::recursive_mutex mutex_;
  Store store_;
  Replay replay_{store_};
  uint64_t sequence_ = 0;
  double clock_ = 0;
  std::atomic<bool> open_ = true;

  struct InUse {
    ValueRef value;
    c10::Storage bytes;
  };
  std::vector<InUse> in_use_;  // by the node that runs in backward
  uint64_t node_ = 0;          // the op it belongs to
  int backward_ = -1;          // the backward pass it belongs to
};

}  // namespace torchlore::budget
