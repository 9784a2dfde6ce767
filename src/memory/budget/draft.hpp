#pragma once

#include <ATen/core/stack.h>

#include "store.hpp"
#include "value.hpp"

namespace torchlore::budget {

/// One op while it is being recorded: what it reads is noted before it runs, what it made after.
/// Both happen under the state's lock; the op itself runs without.
class Draft {
 public:
  /// Notes the op and its arguments, which are the last of the stack.
  /// @param trusted    it depends on its arguments only, and writes what its schema says
  /// @param saves_seen autograd asks us first about what the op saves
  Draft(Store& store, const OpFacts& facts, const torch::jit::Stack& stack, bool trusted,
        bool saves_seen);
  /// Autograd saves a tensor while the op runs.
  void save(Saved& saved, const c10::Storage& storage);
  /// What autograd saved is gone before the op is done: it made a graph that it dropped.
  void forget(const Saved& saved);
  /// Names what the op made, and what was saved in it. Its results are the last of the stack.
  void finish(const torch::jit::Stack& stack, uint64_t sequence, double clock, double seconds);

 private:
  struct Write {
    at::Tensor tensor;
    const c10::StorageImpl* storage = nullptr;
    ValueRef before;
    Value* after = nullptr;
    size_t input = 0;
    bool statistics = false;
  };
  struct Known {
    const c10::StorageImpl* storage = nullptr;
    ValueRef value;
  };

  void note_surroundings();
  void add_arguments(const torch::jit::Stack& stack);
  void add_input(const TensorArgument& argument, int32_t element, const at::Tensor& tensor);
  void add_generators(c10::IValue& argument);
  void add_statistics(const at::Tensor& tensor);
  void add_write(const at::Tensor& tensor);
  Value& value_of(const at::Tensor& tensor);
  Value& make(Slot slot, size_t index, const c10::Storage& storage,
              const c10::VariableVersion& counter);
  void finish_writes();
  void finish_results(const torch::jit::Stack& stack);
  void finish_saves();
  Value& saved_value(const Saved& saved, size_t index, const c10::Storage& storage);
  Value* known(const c10::StorageImpl* storage) const;

  Store& store_;
  RecordRef record_;
  const bool trusted_;
  const bool saves_seen_;
  bool replayable_ = trusted_;
  bool trains_ = true;
  c10::SmallVector<Known, 6> known_;
  c10::SmallVector<Write, 1> writes_;
  c10::SmallVector<Saved*, 4> saves_;
};

}  // namespace torchlore::budget
