#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <utility>

namespace torchlore {

/// What stands in for a tensor that autograd saved for backward.
class PackedTensor {
 public:
  virtual ~PackedTensor();
  /// The tensor, with the values, shape, strides and dtype it had. Called when backward needs it:
  /// on the thread that runs backward, any number of times (`retain_graph`), without gradients.
  virtual at::Tensor unpack() = 0;
};

/// What a `SavedTensorScope` does with the tensors that autograd saves.
class SavedTensorHandler {
 public:
  virtual ~SavedTensorHandler();
  /// Takes a tensor that autograd is about to save; nullptr leaves it to the scope around this one,
  /// and without one to autograd as it is. Called without gradients, and hidden from all modes.
  /// What is returned must not hold `tensor` itself (`tensor.detach()` is fine): an op's own output
  /// would keep its graph alive for ever. `tensor` must not be changed.
  virtual std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) = 0;
};

/// Hands every tensor that autograd saves while it is in scope to a handler, and asks for it when
/// backward needs it: what `torch.autograd.graph.saved_tensors_hooks` is in Python.
///
/// ```cpp
/// {
///   torchlore::SavedTensorScope scope([](const at::Tensor& t) { return t.to(at::kCPU); },
///                                     [device](const at::Tensor& t) { return t.to(device); });
///   loss = model->forward(x).mean();
/// }
/// loss.backward();
/// ```
/// Scopes nest: the innermost handler is asked first. A scope belongs to the thread that made it.
/// What was packed lives as long as the graph, and keeps its handler alive where it needs it.
///
/// The first scope puts an autograd engine of its own in the place of LibTorch's default engine, for
/// the whole process (it only adds the hook); backward of graphs made before works as before.
/// @note Autograd checks no versions of tensors behind hooks. A tensor that the handler left alone
///       is still checked here, with autograd's own error.
/// @note Scopes end on their own thread, innermost first; a violation is a warning, as for `OpMode`.
class [[nodiscard]] SavedTensorScope {
 public:
  /// Enters the scope.
  /// @throws c10::ValueError for a null handler; c10::Error if something else, such as Python, has
  ///         brought its own autograd engine into the process.
  explicit SavedTensorScope(std::shared_ptr<SavedTensorHandler> handler);
  /// The same from two functions: `pack(tensor)` returns whatever stands in for it, and
  /// `unpack(what pack returned)` the tensor. Both are kept as long as the graph. The tensor comes
  /// detached, so that it may be kept as it is.
  template <typename Pack, typename Unpack>
  SavedTensorScope(Pack pack, Unpack unpack);
  ~SavedTensorScope();

  SavedTensorScope(const SavedTensorScope&) = delete;
  SavedTensorScope(SavedTensorScope&&) = delete;
  SavedTensorScope& operator=(const SavedTensorScope&) = delete;
  SavedTensorScope& operator=(SavedTensorScope&&) = delete;

  /// Saves a tensor just as autograd would at this place: through the innermost scope. Inside a
  /// handler's `pack` that is the scope around the handler's own, so that handlers stack.
  /// Never null.
  static std::unique_ptr<PackedTensor> save(const at::Tensor& tensor);

 private:
  struct Level;
  friend struct SavedTensorAccess;

  std::unique_ptr<Level> level_;
};

namespace intercept {

/// What a `pack` function returned, with the `unpack` function.
template <typename Packed, typename Unpack>
class FunctionPacked final : public PackedTensor {
 public:
  /// Takes both.
  FunctionPacked(Packed packed, std::shared_ptr<Unpack> unpack)
      : packed_(std::move(packed)), unpack_(std::move(unpack)) {}
  /// What the function makes of it.
  at::Tensor unpack() override { return std::invoke(*unpack_, packed_); }

 private:
  Packed packed_;
  std::shared_ptr<Unpack> unpack_;
};

/// A handler made of two functions.
template <typename Pack, typename Unpack>
class FunctionHandler final : public SavedTensorHandler {
 public:
  /// Takes both.
  FunctionHandler(Pack pack, Unpack unpack)
      : pack_(std::move(pack)), unpack_(std::make_shared<Unpack>(std::move(unpack))) {}
  /// What the function makes of the tensor, detached.
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override {
    using Packed = std::decay_t<std::invoke_result_t<Pack&, const at::Tensor&>>;
    return std::make_unique<FunctionPacked<Packed, Unpack>>(std::invoke(pack_, tensor.detach()),
                                                            unpack_);
  }

 private:
  Pack pack_;
  std::shared_ptr<Unpack> unpack_;
};

}  // namespace intercept

template <typename Pack, typename Unpack>
SavedTensorScope::SavedTensorScope(Pack pack, Unpack unpack)
    : SavedTensorScope(std::make_shared<intercept::FunctionHandler<Pack, Unpack>>(
          std::move(pack), std::move(unpack))) {}

}  // namespace torchlore
