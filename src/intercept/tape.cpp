#include "torchlore/intercept/tape.hpp"

#include <ATen/ops/ones.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/input_metadata.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <cstring>
#include <ostream>
#include <set>
#include <unordered_map>

#include "tape_gradients.hpp"
#include "tape_graph.hpp"
#include "tape_readers.hpp"

namespace torchlore {
namespace {

using torch::autograd::Node;
constexpr const char* kFreed =
    "the graph behind this loss was freed by a backward; take the tape before backward, or let "
    "backward retain the graph";

constexpr const char* kFreedLater =
    "the graph of this tape was freed by a backward; ask for output gradients before it, or let "
    "backward retain the graph";

/// Runs `f`, and says in our words what LibTorch says of a freed graph.
template <typename F>
auto explain_freed(const char* text, F&& f) {
  try {
    return f();
  } catch (const c10::Error& error) {
    TORCH_CHECK(
        std::strstr(error.what_without_backtrace(), torch::autograd::ERR_BACKWARD_TWICE) == nullptr,
        text);
    throw;
  }
}

TapeTensor tensor_of(const torch::autograd::InputMetadata& metadata) {
  TapeTensor result;
  if (metadata.was_default_constructed()) return result;
  result.dtype = c10::typeMetaToScalarType(metadata.dtype());
  result.device = metadata.device();
  if (metadata.is_nested_tensor()) return result;
  for (const auto& size : metadata.shape_as_dim_vector()) {
    result.sizes.push_back(size.guard_int(__FILE__, __LINE__));
  }
  result.known = true;
  return result;
}

/// A node's kind, its inputs' producers and its outputs' shapes.
TapeNode structure_of(const detail::TapeGraph& graph, size_t index) {
  const Node& from = graph.at(index);
  const auto& reader = detail::tape_reader(from);
  TapeNode node{.index = static_cast<int64_t>(index), .op = reader.op, .name = from.name()};
  const auto& edges = from.next_edges();
  for (size_t i = 0; i < edges.size(); ++i) {
    node.inputs.push_back({.name = detail::tape_input_name(reader, i, edges.size()),
                           .producer = {graph.index(edges[i].function.get()),
                                        static_cast<int64_t>(edges[i].input_nr)}});
  }
  for (uint32_t i = 0; i < from.num_inputs(); ++i) {
    node.outputs.push_back(tensor_of(from.input_metadata(i)));
  }
  return node;
}

/// The one input that the op's elements come from; null if it computes, or has several.
const TapeInput* moved_input(const TapeNode& node) {
  if (!is_view(node.op)) return nullptr;
  const TapeInput* tracked = nullptr;
  for (const auto& input : node.inputs) {
    if (input.producer.node < 0) continue;
    if (tracked != nullptr) return nullptr;
    tracked = &input;
  }
  return tracked;
}

TapeParameter parameter_of(Node& leaf, int64_t index) {
  return {.tensor = static_cast<torch::autograd::AccumulateGrad&>(leaf).variable, .node = index};
}

/// Fills in who uses each node, and which inputs are parameters. Producers stand before consumers,
/// so what a view moves is known when the view is used.
std::vector<TapeParameter> connect(std::vector<TapeNode>& nodes, const detail::TapeGraph& graph,
                                   int64_t loss) {
  std::vector<TapeParameter> parameters;
  std::vector<int64_t> parameter(nodes.size(), -1);  // that the node's outputs are
  for (auto& node : nodes) {
    const auto at = static_cast<size_t>(node.index);
    if (node.op == TapeOp::leaf) {
      parameter[at] = static_cast<int64_t>(parameters.size());
      parameters.push_back(parameter_of(graph.at(at), node.index));
    }
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      auto& input = node.inputs[i];
      if (input.producer.node < 0) continue;
      const auto producer = static_cast<size_t>(input.producer.node);
      nodes[producer].consumers.push_back({node.index, static_cast<int64_t>(i)});
      input.parameter = parameter[producer];
    }
    if (const auto* moved = moved_input(node)) parameter[at] = moved->parameter;
  }
  for (const auto& node : nodes) {  // a view is no use, unless nothing follows it
    if (moved_input(node) != nullptr && node.index != loss) continue;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      if (node.inputs[i].parameter < 0) continue;
      parameters[static_cast<size_t>(node.inputs[i].parameter)].uses.push_back(
          {node.index, static_cast<int64_t>(i)});
    }
  }
  return parameters;
}

/// LibTorch builds an instance norm from a batch norm over one "example" with batch × channels
/// channels. A batch norm over one example whose input was a view of several channels' worth, or whose
/// weight is repeated, computes the same, whoever wrote it.
bool is_instance_norm(const TapeNode& node, const std::vector<TapeNode>& nodes) {
  if (node.op != TapeOp::batch_norm || node.outputs.empty()) return false;
  const auto& sizes = node.outputs[0].sizes;
  if (sizes.size() < 3 || sizes[0] != 1) return false;
  const auto comes_from = [&](size_t input) -> const TapeNode* {
    const int64_t producer = input < node.inputs.size() ? node.inputs[input].producer.node : -1;
    return producer >= 0 ? &nodes[static_cast<size_t>(producer)] : nullptr;
  };
  const auto* weight = comes_from(1);
  if (weight != nullptr && weight->name == "RepeatBackward0") return true;
  const auto* input = comes_from(0);
  if (input == nullptr || input->name != "ViewBackward0") return false;
  const auto* before = input->find_attribute("self_sizes");
  const auto* from = before != nullptr ? std::get_if<std::vector<int64_t>>(before) : nullptr;
  return from != nullptr && from->size() == sizes.size() && (*from)[0] * (*from)[1] == sizes[1];
}

bool uses_parameter(const TapeNode& node) {
  return std::any_of(node.inputs.begin(), node.inputs.end(),
                     [](const TapeInput& input) { return input.parameter >= 0; });
}

bool keeps_saved(const TapeNode& node, TapeKeep keep) {
  if (keep == TapeKeep::parameter_uses) return uses_parameter(node);
  return keep == TapeKeep::activations;
}

void read_contents(std::vector<TapeNode>& nodes, const detail::TapeGraph& graph, TapeKeep keep) {
  for (auto& node : nodes) {
    auto& from = graph.at(static_cast<size_t>(node.index));
    const auto& reader = detail::tape_reader(from);
    if (reader.read == nullptr) continue;
    detail::TapeRecorder record(from, reader, keeps_saved(node, keep), node);
    explain_freed(kFreed, [&] { reader.read(from, record); });
  }
  for (auto& node : nodes) {
    if (is_instance_norm(node, nodes)) node.op = TapeOp::instance_norm;
  }
}

/// The gradient that backward starts from.
at::Tensor loss_gradient(const TapeTensor& loss, const at::Tensor& given) {
  const at::IntArrayRef sizes(loss.sizes);
  if (!given.defined()) {
    TORCH_CHECK_VALUE(loss.known && c10::multiply_integers(sizes) == 1, "the loss has shape ",
                      sizes, "; set loss_gradient, which says how its elements are weighed");
    return at::ones(sizes, at::TensorOptions(loss.dtype).device(loss.device));
  }
  TORCH_CHECK_VALUE(given.sizes() == sizes, "loss_gradient has shape ", given.sizes(),
                    ", but the loss ", sizes);
  TORCH_CHECK_VALUE(given.scalar_type() == loss.dtype && given.device() == loss.device,
                    "loss_gradient is ", given.scalar_type(), " on ", given.device(),
                    ", but the loss ", loss.dtype, " on ", loss.device);
  return given;
}

void check_loss(const at::Tensor& loss) {
  TORCH_CHECK_VALUE(loss.defined(), "the loss is an undefined tensor");
  TORCH_CHECK_VALUE(loss.requires_grad(),
                    "the loss depends on nothing that requires a gradient, so autograd recorded "
                    "nothing; unfreeze a parameter, or leave the no_grad scope");
  TORCH_CHECK_VALUE(loss.grad_fn() != nullptr,
                    "the loss is a leaf: nothing was computed, so there is nothing on the tape");
}

}  // namespace

Tape Tape::of(const at::Tensor& loss, const TapeOptions& options) {
  return of(loss, NamedParameters{}, options);
}

Tape Tape::of(const at::Tensor& loss, const torch::nn::Module& model, const TapeOptions& options) {
  NamedParameters names;
  for (const auto& item : model.named_parameters()) names.emplace_back(item.key(), item.value());
  return of(loss, names, options);
}

Tape Tape::of(const at::Tensor& loss, const NamedParameters& names, const TapeOptions& options) {
  check_loss(loss);
  std::unordered_map<const void*, const std::string*> known;
  for (const auto& [name, parameter] : names) {
    TORCH_CHECK_VALUE(parameter.defined(), "the parameter named '", name, "' is undefined");
    known.emplace(parameter.unsafeGetTensorImpl(), &name);
  }
  auto graph = std::make_shared<const detail::TapeGraph>(loss.grad_fn());
  Tape tape;
  tape.nodes_.reserve(graph->size());
  for (size_t i = 0; i < graph->size(); ++i) tape.nodes_.push_back(structure_of(*graph, i));
  tape.loss_ = {graph->index(loss.grad_fn().get()), static_cast<int64_t>(loss.output_nr())};
  tape.parameters_ = connect(tape.nodes_, *graph, tape.loss_.node);
  read_contents(tape.nodes_, *graph, options.keep);
  for (auto& parameter : tape.parameters_) {
    const auto found = known.find(parameter.tensor.unsafeGetTensorImpl());
    if (found != known.end()) parameter.name = *found->second;
  }
  const auto& root = tape.nodes_[static_cast<size_t>(tape.loss_.node)];
  tape.loss_info_ = root.outputs[static_cast<size_t>(tape.loss_.output)];
  tape.graph_ = std::move(graph);
  return tape;
}

const TapeNode& Tape::node(int64_t index) const {
  TORCH_CHECK_INDEX(index >= 0 && index < static_cast<int64_t>(nodes_.size()), "node ", index,
                    " is not on the tape, which has ", nodes_.size(), " nodes");
  return nodes_[static_cast<size_t>(index)];
}

const TapeParameter& Tape::parameter(std::string_view name) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                  [&](const TapeParameter& p) { return p.name == name; });
  TORCH_CHECK_VALUE(!name.empty() && found != parameters_.end(), "no parameter named '", name,
                    "' is on the tape: the loss does not depend on it, it is frozen, or the tape "
                    "was made without the model that names it");
  return *found;
}

std::vector<int64_t> Tape::path(const TapeUse& use) const {
  const auto& inputs = node(use.node).inputs;
  TORCH_CHECK_INDEX(use.input >= 0 && use.input < static_cast<int64_t>(inputs.size()), "node ",
                    use.node, " has ", inputs.size(), " inputs, but input ", use.input,
                    " was asked for");
  std::vector<int64_t> result;
  const auto* input = &inputs[static_cast<size_t>(use.input)];
  if (input->parameter < 0) return result;
  for (;;) {
    const auto& producer = node(input->producer.node);
    if (producer.op == TapeOp::leaf) break;
    result.push_back(producer.index);
    input = moved_input(producer);
  }
  std::reverse(result.begin(), result.end());
  return result;
}

std::vector<std::string> Tape::unknown() const {
  std::set<std::string> names;
  for (const auto& node : nodes_) {
    if (node.op == TapeOp::unknown) names.insert(node.name);
  }
  return {names.begin(), names.end()};
}

void Tape::release(int64_t index) {
  node(index);  // checks it
  nodes_[static_cast<size_t>(index)].saved.clear();
}

std::vector<at::Tensor> Tape::output_gradients(const std::vector<TapeValue>& values,
                                               const OutputGradientOptions& options) const {
  std::vector<at::Tensor> result(values.size());
  visit_output_gradients(
      values, [&](size_t i, const at::Tensor& gradient) { result[i] = gradient; }, options);
  return result;
}

void Tape::visit_output_gradients(const std::vector<TapeValue>& values,
                                  const TapeGradientVisitor& visit,
                                  const OutputGradientOptions& options) const {
  for (const auto& value : values) {
    const auto outputs = static_cast<int64_t>(node(value.node).outputs.size());
    TORCH_CHECK_VALUE(value.output >= 0 && value.output < outputs, "node ", value.node, " (",
                      node(value.node).name, ") has ", outputs, " outputs, but output ",
                      value.output, " was asked for");
  }
  const auto root = graph_->lock();
  TORCH_CHECK(root != nullptr,
              "the graph of this tape is gone: the loss it was made of was destroyed; keep the "
              "loss until the gradients are taken");
  const auto gradient = loss_gradient(loss_info_, options.loss_gradient);
  if (values.empty()) return;
  explain_freed(kFreedLater, [&] {
    detail::run_to_values(nodes_, *graph_, root, loss_, gradient, options.keep_graph, values,
                          visit);
  });
}

namespace {

/// "view [2, 3] float" and so on.
void print_outputs(std::ostream& out, const TapeNode& node) {
  for (const auto& output : node.outputs) {
    if (output.known) out << ' ' << at::IntArrayRef(output.sizes);
  }
}

void print_input(std::ostream& out, const TapeInput& input, const Tape& tape) {
  out << ' ' << (input.name.empty() ? std::string_view("input") : input.name) << '=';
  if (input.producer.node < 0) {
    out << '-';
    return;
  }
  out << '%' << input.producer.node;
  if (input.producer.output > 0) out << '.' << input.producer.output;
  if (input.parameter < 0) return;
  const auto& name = tape.parameters()[static_cast<size_t>(input.parameter)].name;
  out << '(' << (name.empty() ? "leaf" : name) << ')';
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Tape& tape) {
  for (const auto& node : tape.nodes()) {
    out << '%' << node.index << ' ' << to_string(node.op) << ' ' << node.name;
    print_outputs(out, node);
    for (const auto& input : node.inputs) print_input(out, input, tape);
    out << '\n';
  }
  return out;
}

}  // namespace torchlore
