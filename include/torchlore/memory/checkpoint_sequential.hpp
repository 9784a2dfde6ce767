#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ranges>
#include <utility>
#include <vector>

#include "torchlore/core/bytes.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/memory/checkpoint_plan.hpp"

namespace torchlore {

/// Options of `checkpoint_sequential`. Without `budget` and `segments` there are √n segments of n
/// blocks.
struct CheckpointSequentialOptions {
  /// Bytes that the blocks' activations may take at once; see `CheckpointPlan` for what is counted.
  std::optional<Bytes> budget = std::nullopt;
  /// So many segments of equal numbers of blocks instead; 0: not set.
  int64_t segments = 0;
  /// Where the plan is kept from one call to the next. Without it a call with a budget measures its
  /// blocks each time, which costs two more forward passes.
  CheckpointPlan* plan = nullptr;
  /// How each segment is checkpointed.
  CheckpointOptions checkpoint = {};
};

namespace memory {

/// Blocks of unlike types as one list. Each takes a tensor and gives one.
class BlockSequence {
 public:
  /// Adds a block: anything that `checkpoint` takes.
  template <typename Block>
  void add(Block block) {
    check_checkpoint_types<Block, at::Tensor>();
    modules_.push_back(modules_of(block));
    blocks_.push_back([block = std::move(block)](const at::Tensor& x) mutable -> at::Tensor {
      return call_block(block, x);
    });
  }

  /// The number of blocks.
  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  /// Blocks [begin, end).
  BlockSequence slice(int64_t begin, int64_t end) const;
  /// Runs them all, each on the result of the one before it.
  at::Tensor operator()(at::Tensor x) const;
  /// The modules among them.
  std::vector<std::shared_ptr<torch::nn::Module>> modules() const;

 private:
  std::vector<std::function<at::Tensor(const at::Tensor&)>> blocks_;
  std::vector<std::vector<std::shared_ptr<torch::nn::Module>>> modules_;
};

/// The blocks of a range, or of the module behind a holder (`torch::nn::Sequential`).
template <typename Blocks>
BlockSequence sequence_of(const Blocks& blocks) {
  BlockSequence sequence;
  if constexpr (std::ranges::range<const Blocks>) {
    for (const auto& block : blocks) sequence.add(block);
  } else {
    for (const auto& block : *blocks) sequence.add(block);
  }
  return sequence;
}

at::Tensor checkpoint_sequential(const BlockSequence& blocks, const at::Tensor& x,
                                 const CheckpointSequentialOptions& options);
CheckpointPlan plan_checkpoints(const BlockSequence& blocks, const at::Tensor& x, Bytes budget);

}  // namespace memory

/// Runs blocks one after the other, and checkpoints them in segments.
///
/// With a budget, the first call measures what each block keeps and how long it takes (two forward
/// passes that leave no trace in buffers and random numbers) and plans which blocks are checkpointed
/// together and which are left alone, so that the least is recomputed within the budget.
/// ```cpp
/// torchlore::CheckpointPlan plan;
/// for (…) {
///   x = torchlore::checkpoint_sequential(model->blocks, x, {.budget = torchlore::MiB(512), .plan = &plan});
///   …
/// }
/// std::cout << plan;
/// ```
/// A plan that is kept serves inputs up to the size it was measured on; a larger one, another number
/// of blocks or another budget make it measure again. Clear it (`plan = {}`) where something else
/// changes what the blocks keep, such as autocast or `train()`.
/// @param blocks  a `torch::nn::Sequential`, or a vector of blocks as `checkpoint` takes them (module
///                holders, shared_ptrs, callables). Each takes one tensor and gives one.
/// @param x       the first block's input.
/// @param options see CheckpointSequentialOptions.
/// @return        the last block's output; `x` if there are no blocks.
/// @throws c10::ValueError if the budget is below the smallest that any plan can do with (the text
///         names it), if both budget and segments are given, or if segments is negative.
template <typename Blocks>
at::Tensor checkpoint_sequential(const Blocks& blocks, const at::Tensor& x,
                                 const CheckpointSequentialOptions& options = {}) {
  return memory::checkpoint_sequential(memory::sequence_of(blocks), x, options);
}

/// The same for the modules of a `torch::nn::ModuleList`, which does not know their type:
/// `checkpoint_sequential<torch::nn::TransformerEncoderLayerImpl>(list, x, …)`.
/// @throws c10::TypeError if a module is of another type.
template <typename Module, typename List>
requires requires(const List& list) { list->ptr(size_t{0})->template as<Module>(); }
at::Tensor checkpoint_sequential(const List& list, const at::Tensor& x,
                                 const CheckpointSequentialOptions& options = {}) {
  memory::BlockSequence sequence;
  for (size_t i = 0; i < list->size(); ++i) {
    auto module = std::dynamic_pointer_cast<Module>(list->ptr(i));
    TORCH_CHECK_TYPE(module != nullptr, "module ", i, " of the list is a ", list->ptr(i)->name(),
                     ", not of the type that was named");
    sequence.add(std::move(module));
  }
  return memory::checkpoint_sequential(sequence, x, options);
}

/// Measures the blocks on an input, and plans for the budget, without running them for real.
/// Parameters and result as `checkpoint_sequential`.
template <typename Blocks>
CheckpointPlan plan_checkpoints(const Blocks& blocks, const at::Tensor& x, Bytes budget) {
  return memory::plan_checkpoints(memory::sequence_of(blocks), x, budget);
}

}  // namespace torchlore
