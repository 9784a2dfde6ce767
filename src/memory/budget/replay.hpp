#pragma once

#include "store.hpp"

namespace torchlore::budget {

/// What an op gave when it ran again.
struct Replayed {
  c10::SmallVector<c10::Storage, 4> results;
  c10::SmallVector<c10::Storage, 4> saves;
};

/// Runs a recorded op again, with the same dispatch keys, grad mode, autocast and random numbers as
/// before. `inputs` holds the bytes of each input; those it writes are changed.
/// @param with_saves whether the tensors that autograd saves in it are wanted. Without them it runs
///                   below autograd: the same kernel, without making a graph.
Replayed run_again(const Record& record, const c10::SmallVectorImpl<c10::Storage>& inputs,
                   bool with_saves);

/// Computes values whose bytes are gone.
class Replay {
 public:
  explicit Replay(Store& store) : store_(store) {}

  /// The bytes of all targets. What is made on the way goes back to the pool if it was saved and
  /// fits.
  std::vector<c10::Storage> run(const c10::SmallVectorImpl<Value*>& targets);
  /// The bytes of a value that is there, computed again.
  c10::Storage run_forced(Value& value);

 private:
  void execute_plan();
  void need(Value& value);
  void plan();
  void execute(Record& record);
  using Bytes = c10::SmallVector<c10::Storage, 4>;
  static Bytes take_inputs(Record& record);
  bool needs_saves(Record& record) const;
  bool awaited(const Value& value) const { return value.plan == plan_ && value.uses > 0; }
  void give(Value& value, const c10::Storage& bytes);

  Store& store_;
  uint32_t plan_ = 0;
  Value* forced_ = nullptr;
  c10::Storage forced_bytes_;
  std::vector<Record*> records_;
  std::vector<Value*> todo_;
  std::vector<ValueRef> seen_;
};

}  // namespace torchlore::budget
