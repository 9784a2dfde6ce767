#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/ArrayRef.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "torchlore/memory/visit_tensors.hpp"

namespace torch::nn {
class Module;
}

namespace torchlore {

/// Options of `checkpoint`.
struct CheckpointOptions {
  /// Gives the recomputation the random numbers of the forward pass, so that dropout repeats.
  bool preserve_rng = true;
  /// Which ops' results are kept instead of being computed again, by name as in "aten::addmm" (below
  /// autograd: composite ops come as the ops that they are made of). Views, ops that change something
  /// and random ops are always run again. See `keep_matmuls`.
  std::function<bool(const std::string& op)> keep = nullptr;
  /// Leaves the buffers of a module (running statistics, …) as the plain call would: the recomputation
  /// starts from what they were before the forward pass, and its own changes are undone.
  bool keep_buffers = true;
  /// Further tensors that the block changes in place, treated as buffers: those of the modules in a
  /// lambda, such as `norm->buffers()`.
  std::vector<at::Tensor> buffers = {};
  /// Compares the bytes of every recomputed tensor with a checksum of the first, and reports the
  /// first that differs. Costs a pass over them, and one host sync each on an accelerator.
  bool verify = false;
};

/// Keeps what matrix products, convolutions and attention give, and lets the cheap ops between them be
/// computed again: most of the memory is saved, at a small part of the time.
/// `checkpoint({.keep = torchlore::keep_matmuls()}, block, x)`
std::function<bool(const std::string& op)> keep_matmuls();

namespace memory {

class BlockSequence;

/// The forward pass of a checkpointed block: while it lives, what autograd saves is not kept.
class CheckpointScope {
 public:
  /// Runs the block again on the inputs, which come in the order of `visit_tensors`.
  using Replay = std::function<void(const std::vector<at::Tensor>& inputs)>;
  /// A tensor among the arguments, and which argument it is in.
  struct Input {
    at::Tensor tensor;  ///< as the block is given it
    int64_t argument;   ///< counted from 0
  };

  /// Enters the scope.
  CheckpointScope(const CheckpointOptions& options, Replay replay, const std::vector<Input>& inputs,
                  std::vector<std::shared_ptr<torch::nn::Module>> modules);
  ~CheckpointScope();
  CheckpointScope(const CheckpointScope&) = delete;
  CheckpointScope(CheckpointScope&&) = delete;
  CheckpointScope& operator=(const CheckpointScope&) = delete;
  CheckpointScope& operator=(CheckpointScope&&) = delete;

  /// The forward pass is through. @throws c10::Error if it changed an input in place.
  void finish(const std::vector<at::Tensor>& outputs);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Calls a block, whatever kind it is: something with a `forward`, or a callable.
template <typename Block, typename... Args>
decltype(auto) call_block(Block& block, Args&... args) {
  if constexpr (requires { block->forward(args...); }) {
    return block->forward(args...);
  } else if constexpr (std::invocable<Block&, Args&...>) {
    return std::invoke(block, args...);
  } else {
    static_assert(
        requires { block.forward(args...); },
        "checkpoint(block, args...): the block cannot be called with these arguments");
    return block.forward(args...);
  }
}

/// The modules behind a block: that of a module holder, an AnyModule or a shared_ptr to a module; all
/// of a sequence; none for other blocks.
template <typename Block>
std::vector<std::shared_ptr<torch::nn::Module>> modules_of(const Block& block) {
  if constexpr (std::same_as<Block, BlockSequence>) {
    return block.modules();
  } else if constexpr (std::convertible_to<Block, std::shared_ptr<torch::nn::Module>>) {
    return {block};
  } else if constexpr (requires {
                         { block.ptr() } -> std::convertible_to<std::shared_ptr<torch::nn::Module>>;
                       }) {
    return {block.ptr()};
  } else {
    return {};
  }
}

template <typename T>
inline constexpr bool is_array_ref = false;
template <typename T>
inline constexpr bool is_array_ref<c10::ArrayRef<T>> = true;

template <typename Block, typename... Args>
consteval void check_checkpoint_types() {
  static_assert(!std::is_pointer_v<Block> || std::is_function_v<std::remove_pointer_t<Block>>,
                "checkpoint keeps the block until backward: pass the module holder or a "
                "shared_ptr, not a raw pointer");
  static_assert(!std::is_base_of_v<torch::nn::Module, Block>,
                "checkpoint keeps the block until backward: pass the module holder or a "
                "shared_ptr, not the module itself");
  static_assert(std::copy_constructible<Block>, "checkpoint keeps a copy of the block");
  static_assert((std::copy_constructible<Args> && ...), "checkpoint keeps copies of the arguments");
  static_assert((!is_array_ref<Args> && ...),
                "an ArrayRef does not own its elements: pass a std::vector");
}

/// What runs the block again: copies of the block and of its arguments, without their tensors.
template <typename Block, typename... Args>
CheckpointScope::Replay replay_of(const Block& block, const std::tuple<Args...>& args) {
  auto hollow = args;
  visit_tensors(hollow, [](at::Tensor& tensor) { tensor = at::Tensor(); });
  return [block, hollow](const std::vector<at::Tensor>& inputs) {
    auto again = block;  // a callable with a state starts from the same state each time
    auto filled = hollow;
    size_t next = 0;
    visit_tensors(filled, [&](at::Tensor& tensor) { tensor = inputs[next++]; });
    std::apply([&](auto&... arg) { static_cast<void>(call_block(again, arg...)); }, filled);
  };
}

template <typename... Args>
std::vector<CheckpointScope::Input> inputs_of(const std::tuple<Args...>& args) {
  std::vector<CheckpointScope::Input> inputs;
  int64_t argument = 0;
  const auto add = [&](const auto& arg) {
    visit_tensors(arg, [&](const at::Tensor& t) { inputs.push_back({t, argument}); });
    ++argument;
  };
  std::apply([&](const auto&... arg) { (add(arg), ...); }, args);
  return inputs;
}

}  // namespace memory

/// As below, with options: `checkpoint({.verify = true}, block, x)`.
template <typename Block, typename... Args>
auto checkpoint(const CheckpointOptions& options, Block block, Args... args) {
  memory::check_checkpoint_types<Block, Args...>();
  using Result = std::decay_t<decltype(memory::call_block(block, args...))>;
  if (!at::GradMode::is_enabled()) return Result(memory::call_block(block, args...));
  std::tuple<Args...> arguments(std::move(args)...);
  memory::CheckpointScope scope(options, memory::replay_of(block, arguments),
                                memory::inputs_of(arguments), memory::modules_of(block));
  const auto call = [&](auto&... arg) -> Result { return memory::call_block(block, arg...); };
  if constexpr (std::is_void_v<Result>) {
    std::apply(call, arguments);
    scope.finish({});
  } else {
    Result result = std::apply(call, arguments);
    std::vector<at::Tensor> outputs;
    if (options.keep) visit_tensors(result, [&](const at::Tensor& t) { outputs.push_back(t); });
    scope.finish(outputs);
    return result;
  }
}

/// Calls `block` on `args` without keeping what autograd would save inside; backward recomputes it.
///
/// Trades time for memory: of a block only its inputs are kept, and its forward pass runs once more
/// in backward. Gradients are those of the plain call, bit for bit.
/// ```cpp
/// for (auto& block : blocks) x = torchlore::checkpoint(block, x);
/// ```
/// @param block a module holder (`torch::nn::Linear`, …), a `shared_ptr` to a module, or anything
///              that can be called. A copy is kept until the graph is freed, so a lambda must own
///              what it needs: capture module holders and tensors by value.
/// @param args  anything: the tensors in them (see `visit_tensors`) are saved as autograd saves
///              tensors, the rest is copied.
/// @return      what the block returns.
template <typename Block, typename... Args>
requires(!std::same_as<Block, CheckpointOptions>) auto checkpoint(Block block, Args... args) {
  return checkpoint(CheckpointOptions{}, std::move(block), std::move(args)...);
}

}  // namespace torchlore
