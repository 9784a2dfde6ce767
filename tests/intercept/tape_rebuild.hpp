#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "torchlore/intercept/tape.hpp"

/// A parameter's gradient, worked out by hand from what a tape holds, without autograd.
///
/// An op is linear in a weight W: out = L(W) + the rest. So with G, the loss's gradient by the op's
/// output, the gradient by W's element k is ⟨G, L(eₖ)⟩, with eₖ the k-th unit tensor. L is written down
/// here per op, from the tape's saved tensors and attributes alone; if one of them were not what the
/// op computed with, the sum would differ from autograd's.
namespace torchlore::testing {

using Ints = std::vector<int64_t>;

inline at::Tensor saved(const TapeNode& node, const char* name) {
  const auto tensor = node.saved_tensor(name);
  if (!tensor.defined()) throw std::runtime_error(node.name + " did not save " + name);
  return tensor;
}

inline double number(const TapeNode& node, const char* name) {
  const auto* value = node.find_attribute(name);
  if (value == nullptr) throw std::runtime_error(node.name + " has no attribute " + name);
  if (const auto* i = std::get_if<int64_t>(value)) return static_cast<double>(*i);
  return std::get<double>(*value);
}

inline std::optional<int64_t> optional_int(const TapeNode& node, const char* name) {
  const auto* value = node.find_attribute(name);
  return value != nullptr ? std::optional(std::get<int64_t>(*value)) : std::nullopt;
}

inline at::Tensor expanded(const at::Tensor& x, const TapeNode& node) {
  return x.expand(node.outputs[0].sizes);
}

/// [C] → [1, C, 1, …] with as many dimensions as the node's output.
inline at::Tensor per_channel(const at::Tensor& x, const TapeNode& node) {
  Ints sizes(node.outputs[0].sizes.size(), 1);
  sizes[1] = x.numel();
  return x.reshape(sizes);
}

/// What a view makes of `x`.
inline at::Tensor moved(const TapeNode& node, int64_t output, const at::Tensor& x) {
  const auto& n = node.name;
  if (n == "TBackward0") return x.t();
  if (n == "ViewBackward0" || n == "UnsafeViewBackward0" || n == "ReshapeAliasBackward0" ||
      n == "UnsqueezeBackward0" || n.starts_with("SqueezeBackward")) {
    return x.reshape(node.outputs[0].sizes);
  }
  if (n == "ExpandBackward0") return expanded(x, node);
  if (n == "CloneBackward0") return x.clone();
  if (n == "RepeatBackward0") return x.repeat(node.attribute<Ints>("repeats"));
  if (n == "PermuteBackward0") return x.permute(node.attribute<Ints>("dims"));
  if (n == "TransposeBackward0") {
    return x.transpose(node.attribute<int64_t>("dim0"), node.attribute<int64_t>("dim1"));
  }
  if (n == "SelectBackward0") {
    return x.select(node.attribute<int64_t>("dim"), node.attribute<int64_t>("index"));
  }
  if (n == "SliceBackward0") {
    return x.slice(node.attribute<int64_t>("dim"), optional_int(node, "start"),
                   optional_int(node, "end"), node.attribute<int64_t>("step"));
  }
  const auto part = static_cast<size_t>(output);
  if (n == "SplitBackward0" || n == "UnsafeSplitBackward0") {
    return x.split(node.attribute<int64_t>("split_size"), node.attribute<int64_t>("dim"))[part];
  }
  if (n == "UnbindBackward0") return x.unbind(node.attribute<int64_t>("dim"))[part];
  if (n == "ToCopyBackward0") return x.to(node.outputs[0].dtype);
  throw std::runtime_error("no rule for the view " + n);
}

inline at::Tensor product(const TapeNode& node, const std::string& input, const at::Tensor& x) {
  switch (node.op) {
    case TapeOp::addmm:
      if (input == "self") return number(node, "beta") * expanded(x, node);
      if (input == "mat1") return number(node, "alpha") * x.mm(saved(node, "mat2"));
      return number(node, "alpha") * saved(node, "mat1").mm(x);
    case TapeOp::baddbmm:
      if (input == "self") return number(node, "beta") * expanded(x, node);
      if (input == "batch1") return number(node, "alpha") * x.bmm(saved(node, "batch2"));
      return number(node, "alpha") * saved(node, "batch1").bmm(x);
    case TapeOp::mv:
      return input == "self" ? x.mv(saved(node, "vec")) : saved(node, "self").mv(x);
    case TapeOp::dot:
      return (input == "self" ? saved(node, "tensor") : saved(node, "self")).dot(x);
    default:
      return input == "self" ? x.matmul(saved(node, "mat2")) : saved(node, "self").matmul(x);
  }
}

inline at::Tensor convolved(const TapeNode& node, const std::string& input, const at::Tensor& x) {
  if (input == "bias") return expanded(per_channel(x, node), node);
  const auto data = input == "input" ? x : saved(node, "input");
  const auto weight = input == "input" ? saved(node, "weight") : x;
  return at::convolution(data, weight, {}, node.attribute<Ints>("stride"),
                         node.attribute<Ints>("padding"), node.attribute<Ints>("dilation"),
                         node.attribute<bool>("transposed"), node.attribute<Ints>("output_padding"),
                         node.attribute<int64_t>("groups"));
}

/// The rows of `table`, but none for the padding index, which has no gradient.
inline at::Tensor rows(const TapeNode& node, const at::Tensor& indices, at::Tensor table) {
  const auto padding = node.attribute<int64_t>("padding_idx");
  if (padding >= 0) {
    table = table.clone();
    table[padding].zero_();
  }
  return at::embedding(table, indices);
}

inline at::Tensor bags(const TapeNode& node, const std::string& input, const at::Tensor& x) {
  const auto indices = saved(node, "indices");
  if (node.attribute<int64_t>("mode") == 2) {  // the largest of each column
    const auto filled = saved(node, "bag_size").gt(0).unsqueeze(1);
    return at::where(filled, x.gather(0, saved(node, "max_indices").clamp_min(0)), 0);
  }
  const auto weights = node.saved_tensor("per_sample_weights");
  auto all = rows(node, indices, input == "weight" ? x : saved(node, "weight"));
  if (input != "weight") all = all * x.unsqueeze(1);
  if (input == "weight" && weights.defined()) all = all * weights.unsqueeze(1);
  auto out = at::zeros(node.outputs[0].sizes, x.options());
  const auto bag = saved(node, "offset2bag");
  out.index_add_(0, bag, all);
  if (node.attribute<int64_t>("mode") == 0) return out;
  return out / saved(node, "bag_size").clamp_min(1).unsqueeze(1).to(x.dtype());
}

/// The normalised input, before weight and bias.
inline at::Tensor normalized(const TapeNode& node) {
  auto x = saved(node, "input");
  if (node.op == TapeOp::rms_norm) return x * saved(node, "rstd");
  auto mean = saved(node, "mean"), rstd = saved(node, "rstd");
  if (node.op == TapeOp::layer_norm) return (x - mean) * rstd;
  if (node.op == TapeOp::group_norm) {
    const auto grouped = x.reshape({mean.size(0), mean.size(1), -1});
    return ((grouped - mean.unsqueeze(2)) * rstd.unsqueeze(2)).view(x.sizes());
  }
  if (!node.attribute<bool>("training")) {
    mean = saved(node, "running_mean");
    rstd = (saved(node, "running_var") + number(node, "eps")).rsqrt();
  }
  return (x - per_channel(mean, node)) * per_channel(rstd, node);
}

inline at::Tensor scaled(const TapeNode& node, const std::string& input, const at::Tensor& x) {
  const bool last_dimensions = node.op == TapeOp::layer_norm || node.op == TapeOp::rms_norm;
  const auto broadcast = last_dimensions ? x : per_channel(x, node);
  return input == "bias" ? expanded(broadcast, node) : normalized(node) * broadcast;
}

inline at::Tensor arithmetic(const TapeNode& node, const std::string& input, const at::Tensor& x) {
  const auto& n = node.name;
  if (n == "AddBackward0" || n == "SubBackward0") {
    const double alpha = input == "other" ? number(node, "alpha") : 1;
    return expanded((n == "SubBackward0" && input == "other" ? -alpha : alpha) * x, node);
  }
  if (n == "MulBackward0") return x * saved(node, input == "self" ? "other" : "self");
  if (n == "DivBackward0" && input == "self") return x / saved(node, "other");
  throw std::runtime_error("no rule for " + n);
}

/// L(x) of the op for that input.
inline at::Tensor linear_part(const TapeNode& node, const std::string& input, const at::Tensor& x) {
  switch (node.op) {
    case TapeOp::convolution:
      return convolved(node, input, x);
    case TapeOp::embedding:
      return rows(node, saved(node, "indices"), x);
    case TapeOp::embedding_bag:
      return bags(node, input, x);
    case TapeOp::layer_norm:
    case TapeOp::rms_norm:
    case TapeOp::group_norm:
    case TapeOp::batch_norm:
    case TapeOp::instance_norm:
      return scaled(node, input, x);
    case TapeOp::prelu: {
      const auto self = saved(node, "self");
      return at::where(self > 0, at::zeros_like(self), self * x);
    }
    case TapeOp::trilinear:
      return at::_trilinear(saved(node, "i1"), x, saved(node, "i3"),
                            node.attribute<Ints>("expand1"), node.attribute<Ints>("expand2"),
                            node.attribute<Ints>("expand3"), node.attribute<Ints>("sumdim"));
    case TapeOp::elementwise:
      return arithmetic(node, input, x);
    default:
      return product(node, input, x);
  }
}

/// The views between a leaf and a use, the leaf's first, each with the output that is followed.
inline std::vector<TapeValue> views_before(const Tape& tape, const TapeUse& use) {
  std::vector<TapeValue> result;
  auto from = tape.node(use.node).inputs[static_cast<size_t>(use.input)].producer;
  for (const int64_t index : tape.path(use)) {
    (void)index;
    result.insert(result.begin(), from);
    for (const auto& input : tape.node(from.node).inputs) {
      if (input.producer.node >= 0) from = input.producer;
    }
  }
  return result;
}

/// The gradient of the loss by a leaf: the sum over its uses of ⟨G, L(eₖ)⟩.
inline at::Tensor rebuilt_gradient(const Tape& tape, const TapeParameter& leaf) {
  auto gradient = at::zeros_like(leaf.tensor.detach());
  auto flat = gradient.view(-1);
  for (const auto& use : leaf.uses) {
    const auto& node = tape.node(use.node);
    const auto g = tape.output_gradients({{use.node}})[0];
    const std::string input(node.inputs[static_cast<size_t>(use.input)].name);
    const auto views = views_before(tape, use);
    for (int64_t k = 0; k < flat.numel(); ++k) {
      auto unit = at::zeros_like(flat);
      unit[k] = 1;
      unit = unit.view(leaf.tensor.sizes());
      for (const auto& view : views) unit = moved(tape.node(view.node), view.output, unit);
      flat[k] += (g * linear_part(node, input, unit)).sum();
    }
  }
  return gradient;
}

}  // namespace torchlore::testing
