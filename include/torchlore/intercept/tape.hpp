#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchlore/intercept/tape_node.hpp"

namespace torch::nn {
class Module;
}

namespace torchlore {

namespace detail {
class TapeGraph;
}

/// Which saved tensors a `Tape` keeps, and so keeps alive.
enum class TapeKeep : uint8_t {
  structure,       ///< none: ops, edges, shapes and settings only
  parameter_uses,  ///< those of the ops that use a parameter
  activations      ///< all
};

/// Settings of a `Tape`.
struct TapeOptions {
  TapeKeep keep = TapeKeep::activations;  ///< see `TapeKeep`
};

/// Settings of `Tape::output_gradients`.
struct OutputGradientOptions {
  /// Leave the graph as it is, so that `backward` can run afterwards. False frees the saved tensors
  /// of the nodes it runs through, as `backward` does; those that the tape keeps stay.
  bool keep_graph = true;
  /// The gradient to start from, in the loss's shape and dtype. Undefined: 1, for a loss with one
  /// element.
  at::Tensor loss_gradient = {};
};

/// Called with the place of a value among those asked for, and the loss's gradient by it.
using TapeGradientVisitor = std::function<void(size_t place, const at::Tensor& gradient)>;

/// A leaf of the graph (a tensor that wants a gradient and was not computed) and where it is used.
struct TapeParameter {
  std::string name = {};           ///< its name in the model; empty if it has none there
  at::Tensor tensor = {};          ///< the leaf itself, not a copy: `tensor.grad()` is its gradient
  int64_t node = -1;               ///< its node on the tape
  std::vector<TapeUse> uses = {};  ///< the ops that compute with it, behind views and casts
};

/// What autograd recorded in a forward of an unmodified model, as plain data: which ops ran, what
/// they saved, which parameters they used.
///
/// ```cpp
/// const auto loss = criterion(model->forward(x), y);
/// const auto tape = torchlore::Tape::of(loss, *model);
/// for (const auto& parameter : tape.parameters()) {
///   for (const auto& use : parameter.uses) {
///     const auto& op = tape.node(use.node);
///     std::cout << parameter.name << " is used by " << op.name << '\n';
///   }
/// }
/// ```
///
/// Nodes stand in the order of the forward: producers before consumers, the loss's node last. A
/// node is there for each op whose result depends on a leaf; constants and frozen parameters are not.
/// What an op saved is read as backward reads it, so saved-tensor hooks run, and a saved tensor that
/// was changed in place is an error.
///
/// The tape keeps the parameters and, as `TapeOptions::keep` says, the saved tensors alive, not the
/// graph: it stays readable after `backward`, and when the loss is gone. Copies share the tensors.
/// @note O(n log n) in nodes and edges. Host syncs: 0. For one thread at a time, and not while the
///       graph's backward runs.
class Tape {
 public:
  /// Names and parameters of a model, as `named_parameters()` gives them.
  using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

  /// Reads the graph behind `loss`; parameters have no names.
  /// @param loss a computed tensor of any shape with a grad_fn; not modified.
  /// @throws c10::ValueError if the loss depends on nothing that wants a gradient; c10::Error if a
  ///         backward has freed the graph (and saved tensors are asked for), or if a saved tensor
  ///         was changed in place.
  static Tape of(const at::Tensor& loss, const TapeOptions& options = {});
  /// The same, with the names the parameters have in `model` (tied ones: the first).
  static Tape of(const at::Tensor& loss, const torch::nn::Module& model,
                 const TapeOptions& options = {});
  /// The same, with these names. @throws also c10::ValueError for an undefined tensor.
  static Tape of(const at::Tensor& loss, const NamedParameters& names,
                 const TapeOptions& options = {});

  /// All nodes, producers before consumers.
  const std::vector<TapeNode>& nodes() const { return nodes_; }

  /// One node. @throws c10::IndexError if there is none.
  const TapeNode& node(int64_t index) const;

  /// The loss: the output of the last node that the tape was made of.
  TapeValue loss() const { return loss_; }

  /// All leaves, in the order in which they are first used: the parameters, and inputs that want a
  /// gradient. A tied parameter is one leaf with several uses.
  const std::vector<TapeParameter>& parameters() const { return parameters_; }

  /// The leaf of that name. @throws c10::ValueError if the tape has none.
  const TapeParameter& parameter(std::string_view name) const;

  /// The nodes between a parameter and where it is used, from the parameter on: the views and casts
  /// it passes. Empty if it is used directly, or the input is no parameter.
  std::vector<int64_t> path(const TapeUse& use) const;

  /// Names of the ops that the tape does not know (`TapeOp::unknown`), sorted, each once.
  std::vector<std::string> unknown() const;

  /// Gradients of the loss by chosen values, without the parameters' gradients.
  ///
  /// Runs LibTorch's backward down to these values; what only leads to parameters is not computed.
  /// No `.grad` is written, that of an intermediate with `retain_grad` neither. Hooks that users put
  /// on tensors run, and a gradient is what they made of it. As with backward, call it outside of
  /// autocast.
  /// @param values which outputs of which nodes; any order, any number.
  /// @return one tensor per value, in the value's shape; undefined where no gradient arrives.
  /// @throws c10::ValueError for a value that is not there, for several elements in the loss and no
  ///         `loss_gradient`, or one that does not fit; c10::Error if the graph is gone: the loss
  ///         was destroyed, or a backward freed it.
  /// @note Host syncs: 0.
  std::vector<at::Tensor> output_gradients(const std::vector<TapeValue>& values,
                                           const OutputGradientOptions& options = {}) const;

  /// The same, handing over each gradient as soon as it is there, so that not all of them need to be
  /// held at once. Values without a gradient are left out. The order is the engine's.
  /// @param visit called on the engine's thread for the value's device (the caller's, on the CPU);
  ///              must not write into the gradient, with which backward goes on.
  void visit_output_gradients(const std::vector<TapeValue>& values,
                              const TapeGradientVisitor& visit,
                              const OutputGradientOptions& options = {}) const;

  /// Lets go of what a node saved, when it has served. @throws c10::IndexError if there is no such
  /// node.
  void release(int64_t node);

 private:
  Tape() = default;

  std::vector<TapeNode> nodes_;
  std::vector<TapeParameter> parameters_;
  TapeValue loss_;
  TapeTensor loss_info_;
  std::shared_ptr<const detail::TapeGraph> graph_;
};

/// One line per node: index, kind, name, output shapes, where its inputs come from.
std::ostream& operator<<(std::ostream& out, const Tape& tape);

}  // namespace torchlore
