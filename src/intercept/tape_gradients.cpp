#include "tape_gradients.hpp"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <utility>

#include "tape_graph.hpp"

namespace torchlore::detail {
namespace {

using torch::autograd::FunctionPreHook;
using torch::autograd::Node;
using torch::autograd::variable_list;

/// The places of wanted values, by node and output.
using Wanted = std::unordered_map<int64_t, std::vector<std::pair<int64_t, size_t>>>;

void hand_over(const variable_list& gradients,
               const std::vector<std::pair<int64_t, size_t>>& outputs,
               const TapeGradientVisitor& visit) {
  for (const auto& [output, position] : outputs) {
    const auto& gradient = gradients[static_cast<size_t>(output)];
    if (gradient.defined()) visit(position, gradient);
  }
}

/// Sees what arrives at a node, after all hooks that users have put on its outputs: the engine's own
/// capture of a node that it also runs does not.
struct Tap : FunctionPreHook {
  Tap(const std::vector<std::pair<int64_t, size_t>>& wanted, const TapeGradientVisitor& visitor)
      : outputs(wanted), visit(visitor) {}
  variable_list operator()(const variable_list& gradients) override {
    hand_over(gradients, outputs, visit);
    return gradients;
  }
  const std::vector<std::pair<int64_t, size_t>>& outputs;
  const TapeGradientVisitor& visit;
};

/// Hooks of one pass, gone when it ends.
class Taps {
 public:
  void add(Node& node, std::unique_ptr<FunctionPreHook> tap) {
    placed_.emplace_back(&node, tap.get());
    node.add_tensor_pre_hook(std::move(tap));
  }
  /// What writes the `.grad` of an intermediate (`retain_grad`) belongs to the user's backward.
  void suspend_retained_gradients(Node& node) {
    if (!node.retains_grad_hooks().empty()) {
      suspended_.emplace_back(&node, std::exchange(node.retains_grad_hooks(), {}));
    }
  }
  Taps() = default;
  Taps(const Taps&) = delete;
  Taps& operator=(const Taps&) = delete;
  Taps(Taps&&) = delete;
  Taps& operator=(Taps&&) = delete;
  ~Taps() {
    for (const auto& [node, tap] : placed_) {
      std::erase_if(node->tensor_pre_hooks(),
                    [tap = tap](const auto& hook) { return hook.get() == tap; });
    }
    for (auto& [node, hooks] : suspended_) node->retains_grad_hooks() = std::move(hooks);
  }

 private:
  using RetainedHooks = std::unordered_map<size_t, std::unique_ptr<FunctionPreHook>>;
  std::vector<std::pair<Node*, FunctionPreHook*>> placed_;
  std::vector<std::pair<Node*, RetainedHooks>> suspended_;
};

/// Whether a wanted node lies behind each node: those without are where the engine stops.
std::vector<bool> has_wanted_behind(const std::vector<TapeNode>& nodes, const Wanted& wanted) {
  std::vector<bool> behind(nodes.size(), false);
  for (const auto& node : nodes) {
    for (const auto& input : node.inputs) {
      if (input.producer.node < 0) continue;
      const bool found =
          wanted.contains(input.producer.node) || behind[static_cast<size_t>(input.producer.node)];
      if (found) behind[static_cast<size_t>(node.index)] = true;
    }
  }
  return behind;
}

}  // namespace

void run_to_values(const std::vector<TapeNode>& nodes, const TapeGraph& graph, const NodePtr& root,
                   TapeValue loss, const at::Tensor& root_gradient, bool keep_graph,
                   const std::vector<TapeValue>& values, const TapeGradientVisitor& visit) {
  Wanted wanted;
  for (size_t i = 0; i < values.size(); ++i) {
    wanted[values[i].node].emplace_back(values[i].output, i);
  }
  const auto behind = has_wanted_behind(nodes, wanted);
  Taps taps;
  for (size_t i = 0; i < graph.size(); ++i) taps.suspend_retained_gradients(graph.at(i));
  torch::autograd::edge_list ends;
  std::vector<size_t> leaves;  // whose gradients are taken from the engine, by position in `values`
  for (const auto& [index, outputs] : wanted) {
    const auto at = static_cast<size_t>(index);
    const bool is_leaf = nodes[at].op == TapeOp::leaf;
    if (!is_leaf) taps.add(graph.at(at), std::make_unique<Tap>(outputs, visit));
    if (behind[at]) continue;
    ends.emplace_back(graph.at(at).getptr(), static_cast<uint32_t>(outputs.front().first));
    leaves.push_back(is_leaf ? static_cast<size_t>(index) : nodes.size());
  }
  const auto captured = torch::autograd::Engine::get_default_engine().execute(
      {{root, static_cast<uint32_t>(loss.output)}}, {root_gradient}, keep_graph,
      /*create_graph=*/false, /*accumulate_grad=*/false, ends);
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (leaves[i] == nodes.size()) continue;
    hand_over({captured[i]}, wanted.at(static_cast<int64_t>(leaves[i])), visit);
  }
}

}  // namespace torchlore::detail
