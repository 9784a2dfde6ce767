#include "parameter_path.hpp"

#include <ATen/ExpandUtils.h>
#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>

namespace torchlore::detail {
namespace {

using Ints = std::vector<int64_t>;

/// What comes out of a view is the same elements in another shape.
bool is_reshape(const std::string& name) {
  return name == "ViewBackward0" || name == "UnsafeViewBackward0" ||
         name == "ReshapeAliasBackward0" || name == "UnsqueezeBackward0" ||
         name.starts_with("SqueezeBackward");
}

bool is_copy(const std::string& name) {
  return name == "CloneBackward0" || name == "ToCopyBackward0" || name == "AliasBackward0";
}

bool is_split(const std::string& name) {
  return name == "SplitBackward0" || name == "UnsafeSplitBackward0" ||
         name == "SplitWithSizesBackward0" || name == "UnsafeSplitWithSizesBackward0";
}

const TapeInput& moved_input(const TapeNode& node) {
  return *std::find_if(node.inputs.begin(), node.inputs.end(),
                       [](const TapeInput& input) { return input.producer.node >= 0; });
}

const Ints& sizes_of(const Tape& tape, const TapeValue& value) {
  return tape.node(value.node).outputs[static_cast<size_t>(value.output)].sizes;
}

/// A dimension of the view's input, as one of [B, …]; negative ones count from the end.
int64_t dimension(const TapeNode& node, const char* name, const Ints& sizes) {
  auto dim = node.attribute<int64_t>(name);
  if (dim < 0) dim += static_cast<int64_t>(sizes.size());
  return dim + 1;
}

int64_t part_start(const TapeNode& node, int64_t output) {
  if (const auto* size = node.find_attribute("split_size")) {
    return std::get<int64_t>(*size) * output;
  }
  const auto& parts = node.attribute<Ints>("split_sizes");
  int64_t start = 0;
  for (int64_t i = 0; i < output; ++i) start += parts[static_cast<size_t>(i)];
  return start;
}

/// [B, *sizes] of zeros but for the elements that `into` picks, which are the gradients.
template <typename Into>
at::Tensor placed(const at::Tensor& gradients, const Ints& sizes, Into into) {
  Ints all{gradients.size(0)};
  all.insert(all.end(), sizes.begin(), sizes.end());
  auto result = at::zeros(all, gradients.options());
  into(result).copy_(gradients);
  return result;
}

at::Tensor back_through_slice(const TapeNode& node, const Ints& sizes,
                              const at::Tensor& gradients) {
  const int64_t dim = dimension(node, "dim", sizes);
  const auto optional = [&](const char* name) -> std::optional<int64_t> {
    const auto* value = node.find_attribute(name);
    if (value == nullptr) return std::nullopt;
    return std::get<int64_t>(*value);
  };
  return placed(gradients, sizes, [&](const at::Tensor& all) {
    return all.slice(dim, optional("start"), optional("end"), node.attribute<int64_t>("step"));
  });
}

at::Tensor back_through_permute(const TapeNode& node, const at::Tensor& gradients) {
  const auto& dims = node.attribute<Ints>("dims");
  Ints back(dims.size() + 1, 0);
  const auto rank = static_cast<int64_t>(dims.size());
  for (size_t i = 0; i < dims.size(); ++i) {
    const int64_t from = dims[i] < 0 ? dims[i] + rank : dims[i];
    back[static_cast<size_t>(from) + 1] = static_cast<int64_t>(i) + 1;
  }
  return gradients.permute(back);
}

at::Tensor summed_to(const at::Tensor& gradients, const Ints& sizes) {
  Ints all(static_cast<size_t>(gradients.dim()) - sizes.size(), 1);
  all[0] = gradients.size(0);
  all.insert(all.end(), sizes.begin(), sizes.end());
  Ints result{gradients.size(0)};
  result.insert(result.end(), sizes.begin(), sizes.end());
  return at::sum_to(gradients, all).reshape(result);
}

/// Undefined for a view that is not known. `sizes` are those of the view's input.
at::Tensor back_through_view(const TapeNode& node, int64_t output, const Ints& sizes,
                             const at::Tensor& gradients) {
  const auto& name = node.name;
  if (is_copy(name)) return gradients;
  if (is_reshape(name)) {
    Ints all{gradients.size(0)};
    all.insert(all.end(), sizes.begin(), sizes.end());
    return gradients.reshape(all);
  }
  if (name == "TBackward0") return sizes.size() < 2 ? gradients : gradients.transpose(1, 2);
  if (name == "TransposeBackward0") {
    return gradients.transpose(dimension(node, "dim0", sizes), dimension(node, "dim1", sizes));
  }
  if (name == "PermuteBackward0") return back_through_permute(node, gradients);
  if (name == "SliceBackward0") return back_through_slice(node, sizes, gradients);
  if (name == "ExpandBackward0") return summed_to(gradients, sizes);
  const auto select = [&](int64_t dim, int64_t index) {
    return placed(gradients, sizes, [&](const at::Tensor& all) { return all.select(dim, index); });
  };
  if (name == "SelectBackward0") {
    return select(dimension(node, "dim", sizes), node.attribute<int64_t>("index"));
  }
  if (name == "UnbindBackward0") return select(dimension(node, "dim", sizes), output);
  if (is_split(name)) {
    const int64_t dim = dimension(node, "dim", sizes);
    return placed(gradients, sizes, [&](const at::Tensor& all) {
      return all.narrow(dim, part_start(node, output), gradients.size(dim));
    });
  }
  return {};
}

}  // namespace

ParameterPath path_to(const Tape& tape, const TapeUse& use) {
  ParameterPath result;
  auto value = tape.node(use.node).inputs[static_cast<size_t>(use.input)].producer;
  while (tape.node(value.node).op != TapeOp::leaf) {
    result.push_back(value);
    value = moved_input(tape.node(value.node)).producer;
  }
  std::reverse(result.begin(), result.end());
  return result;
}

bool is_known(const Tape& tape, const ParameterPath& path) {
  static const std::vector<std::string> others{
      "TBackward0",      "TransposeBackward0", "PermuteBackward0", "SliceBackward0",
      "ExpandBackward0", "SelectBackward0",    "UnbindBackward0"};
  return std::all_of(path.begin(), path.end(), [&](const TapeValue& value) {
    const auto& name = tape.node(value.node).name;
    return is_copy(name) || is_reshape(name) || is_split(name) ||
           std::find(others.begin(), others.end(), name) != others.end();
  });
}

bool keeps_norms(const Tape& tape, const ParameterPath& path) {
  return std::none_of(path.begin(), path.end(), [&](const TapeValue& value) {
    return tape.node(value.node).name == "ExpandBackward0";
  });
}

at::Tensor back_through(const Tape& tape, const ParameterPath& path, at::Tensor gradients) {
  for (auto view = path.rbegin(); view != path.rend(); ++view) {
    const auto& node = tape.node(view->node);
    const auto& sizes = sizes_of(tape, moved_input(node).producer);
    gradients = back_through_view(node, view->output, sizes, gradients);
    TORCH_INTERNAL_ASSERT(gradients.defined(), "no adjoint of ", node.name);
  }
  return gradients;
}

}  // namespace torchlore::detail
