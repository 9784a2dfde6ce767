#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace torchlore {

/// How ranks agree on a value.
enum class ReduceOp { sum, max, min };

/// The operation's name, as written in code.
constexpr const char* to_string(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::max:
      return "max";
    case ReduceOp::min:
      return "min";
  }
  return "?";
}

/// A copyable handle through which ranks agree on whatever must be equal on all of them: found_inf,
/// norms, clip decisions, token counts. The default is the identity: one rank that agrees with
/// itself.
///
/// Put the same reducer into the options of each object that needs one:
/// ```cpp
/// torchlore::Reducer ranks(world_size, rank, [&](at::Tensor& t, torchlore::ReduceOp op) { … });
/// torchlore::LossScaler scaler({.reducer = ranks});
/// ```
class Reducer {
 public:
  /// Reduces `tensor` in place over all ranks; collective: every rank calls it in the same order.
  using Function = std::function<void(at::Tensor& tensor, ReduceOp op)>;

  Reducer() = default;
  /// @throws c10::ValueError unless world_size >= 1, 0 <= rank < world_size and `function` is
  /// callable.
  Reducer(int64_t world_size, int64_t rank, Function function);

  /// Reduces in place. Nothing happens, and nothing is synchronised, for the identity.
  void all_reduce_(at::Tensor& tensor, ReduceOp op) const {
    if (function_) (*function_)(tensor, op);
  }

  /// Number of ranks; 1 for the identity.
  int64_t world_size() const { return world_size_; }
  /// This rank, from 0.
  int64_t rank() const { return rank_; }
  /// Whether there is nothing to agree on: one rank.
  bool is_identity() const { return function_ == nullptr; }

 private:
  int64_t world_size_ = 1;
  int64_t rank_ = 0;
  std::shared_ptr<const Function> function_;
};

namespace detail {

/// The largest of the numbers that the ranks have. What is reduced is made beforehand: memory may
/// have run out when they have to agree on that.
class LargestOverRanks {
 public:
  explicit LargestOverRanks(Reducer ranks);

  /// Collective: every rank calls it in the same order.
  double operator()(double own);

 private:
  Reducer ranks_;
  at::Tensor agreed_;  // undefined for one rank
};

}  // namespace detail
}  // namespace torchlore
