#include "example_layout.hpp"

#include <ATen/Functions.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

namespace torchlore::detail {
namespace {

/// A graph without its tensors: what stays the same when the batch is another one, and the sizes.
struct GraphSignature {
  std::vector<int64_t> structure;
  std::vector<int64_t> sizes;  // the number of examples first
};

/// Dimensions and the like: numbers that say where, not how many.
bool is_place(std::string_view attribute) {
  return attribute.starts_with("dim") || attribute.starts_with("expand") || attribute == "sumdim";
}

int64_t hash_of(std::string_view text) {
  return static_cast<int64_t>(std::hash<std::string_view>()(text));
}

void add_attribute(GraphSignature& to, const TapeAttribute& attribute) {
  to.structure.push_back(hash_of(attribute.name));
  auto& numbers = is_place(attribute.name) ? to.structure : to.sizes;
  if (const auto* list = std::get_if<std::vector<int64_t>>(&attribute.value)) {
    to.structure.push_back(static_cast<int64_t>(list->size()));
    numbers.insert(numbers.end(), list->begin(), list->end());
  } else if (const auto* number = std::get_if<int64_t>(&attribute.value)) {
    numbers.push_back(*number);
  } else if (const auto* flag = std::get_if<bool>(&attribute.value)) {
    to.structure.push_back(*flag ? 1 : 0);
  } else if (const auto* text = std::get_if<std::string>(&attribute.value)) {
    to.structure.push_back(hash_of(*text));
  }  // factors and dtypes move no example
}

GraphSignature signature_of(const Tape& tape, int64_t examples,
                            const std::vector<TapeValue>& values) {
  GraphSignature result;
  result.sizes.push_back(examples);
  for (const auto& node : tape.nodes()) {
    result.structure.push_back(hash_of(node.name));
    result.structure.push_back(static_cast<int64_t>(node.inputs.size()));
    for (const auto& input : node.inputs) {
      result.structure.push_back(input.producer.node);
      result.structure.push_back(input.producer.output);
    }
    for (const auto& output : node.outputs) {
      result.structure.push_back(static_cast<int64_t>(output.sizes.size()));
      result.sizes.insert(result.sizes.end(), output.sizes.begin(), output.sizes.end());
    }
    for (const auto& attribute : node.attributes) add_attribute(result, attribute);
  }
  for (const auto& value : values) {
    result.structure.push_back(value.node);
    result.structure.push_back(value.output);
  }
  return result;
}

/// Numbers of one graph and what they are in another one of the same structure. If it is a function, the
/// second graph is the first one with other sizes, and examples lie in it in the same way.
using Substitution = std::unordered_map<int64_t, int64_t>;

std::optional<Substitution> substitution(const std::vector<int64_t>& from,
                                         const std::vector<int64_t>& to) {
  if (from.size() != to.size()) return std::nullopt;
  Substitution result{{-1, -1}, {0, 0}, {1, 1}};
  for (size_t i = 0; i < from.size(); ++i) {
    if (result.emplace(from[i], to[i]).first->second != to[i]) return std::nullopt;
  }
  return result;
}

std::optional<ExampleLayout> moved(const ExampleLayout& layout, const Substitution& sizes,
                                   int64_t examples, int64_t size) {
  if (examples == 0 || size % examples != 0) return std::nullopt;
  auto result = layout;
  const int64_t per_example = size / examples;
  result.examples = examples;
  if (layout.outer == 1) {
    result.inner = per_example;
  } else if (layout.inner == 1) {
    result.outer = per_example;
  } else {
    const auto outer = sizes.find(layout.outer), inner = sizes.find(layout.inner);
    if (outer == sizes.end() || inner == sizes.end()) return std::nullopt;
    result.outer = outer->second;
    result.inner = inner->second;
  }
  const bool was_one = layout.per_example() == 1;
  if (result.per_example() != per_example || (was_one && per_example != 1)) return std::nullopt;
  return result;
}

/// What was found for one graph.
struct Known {
  GraphSignature signature;
  std::vector<FoundLayouts> found;
};

/// The layouts of a graph that is `known` with other sizes; nothing if it is not.
std::optional<std::vector<FoundLayouts>> recall(const Known& known, const GraphSignature& signature,
                                                const Tape& tape,
                                                const std::vector<TapeValue>& values) {
  if (known.signature.structure != signature.structure) return std::nullopt;
  if (known.signature.sizes == signature.sizes) return known.found;
  const auto sizes = substitution(known.signature.sizes, signature.sizes);
  if (!sizes) return std::nullopt;
  auto result = known.found;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto& node = tape.node(values[i].node);
    const auto& shape = node.outputs[static_cast<size_t>(values[i].output)].sizes;
    for (auto& layout : result[i].layouts) {
      const auto other =
          moved(layout, *sizes, signature.sizes[0], shape[static_cast<size_t>(layout.dim)]);
      if (!other) return std::nullopt;
      layout = *other;
    }
  }
  return result;
}

/// Every layout of a dimension that could hold the examples.
std::vector<ExampleLayout> possible_layouts(at::IntArrayRef sizes, int64_t examples) {
  std::vector<ExampleLayout> result;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] == 0 || sizes[dim] % examples != 0) continue;
    const int64_t per_example = sizes[dim] / examples;
    for (int64_t inner = 1; inner <= per_example; ++inner) {
      if (per_example % inner != 0) continue;
      result.push_back({static_cast<int64_t>(dim), per_example / inner, examples, inner});
    }
  }
  return result;
}

/// For each dimension, which of its indices hold a NaN anywhere, but where `without` is true.
std::vector<at::Tensor> nan_indices(const at::Tensor& gradient, const at::Tensor& without) {
  auto is_nan = at::isnan(gradient);
  if (without.defined()) is_nan = is_nan.logical_and(without.logical_not());
  std::vector<at::Tensor> result;
  for (int64_t dim = 0; dim < gradient.dim(); ++dim) {
    const auto rows = is_nan.movedim(dim, 0).reshape({gradient.size(dim), -1});
    result.push_back(rows.any(1).cpu());
  }
  return result;
}

bool fits(const ExampleLayout& layout, const std::vector<at::Tensor>& nan, int64_t example) {
  const auto& indices = nan[static_cast<size_t>(layout.dim)];
  const auto* flags = indices.const_data_ptr<bool>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    if (flags[i] && (i / layout.inner) % layout.examples != example) return false;
  }
  return true;
}

/// First, last, one between; then the others, for what these could not tell.
std::vector<int64_t> probed_examples(int64_t examples) {
  std::vector<int64_t> result{0, examples - 1, examples / 2, 1};
  for (int64_t e = 2; e < std::min<int64_t>(examples, 64); ++e) result.push_back(e);
  std::vector<int64_t> unique;
  for (const int64_t e : result) {
    if (std::find(unique.begin(), unique.end(), e) == unique.end()) unique.push_back(e);
  }
  return unique;
}

/// Where each gradient is NaN when all losses have the gradient 0: at examples that are not finite.
std::vector<at::Tensor> always_nan(const Tape& tape, const at::Tensor& losses,
                                   const std::vector<TapeValue>& values) {
  std::vector<at::Tensor> result(values.size());
  const auto visit = [&](size_t place, const at::Tensor& gradient) {
    result[place] = at::isnan(gradient);
  };
  tape.visit_output_gradients(values, visit, {.loss_gradient = at::zeros_like(losses)});
  return result;
}

/// @param without where each gradient is NaN whatever is probed; undefined: nowhere.
std::vector<FoundLayouts> probe(const Tape& tape, const at::Tensor& losses,
                                const std::vector<TapeValue>& values,
                                const std::vector<at::Tensor>& without) {
  const int64_t examples = losses.numel();
  std::vector<FoundLayouts> result(values.size());
  size_t passes = 0;
  for (const int64_t example : probed_examples(examples)) {
    const bool is_settled = std::all_of(
        result.begin(), result.end(), [](const auto& found) { return found.layouts.size() <= 1; });
    if (passes >= 4 && is_settled) break;
    auto root = at::zeros_like(losses);
    root[example] = std::numeric_limits<double>::quiet_NaN();
    const auto visit = [&](size_t place, const at::Tensor& gradient) {
      auto& [has_gradient, layouts] = result[place];
      if (!has_gradient) layouts = possible_layouts(gradient.sizes(), examples);
      has_gradient = true;
      const auto nan = nan_indices(gradient, without[place]);
      std::erase_if(layouts, [&](const auto& layout) { return !fits(layout, nan, example); });
    };
    tape.visit_output_gradients(values, visit, {.loss_gradient = root});
    ++passes;
  }
  return result;
}

/// How far apart in memory order the elements of two neighbouring examples are: the same for all values that
/// hold the same elements in the same order.
int64_t example_stride(const ExampleLayout& layout, at::IntArrayRef sizes) {
  return layout.inner * c10::multiply_integers(sizes.slice(static_cast<size_t>(layout.dim) + 1));
}

/// Leaves the layouts of `of` that some layout of `by` agrees with. Returns whether any went.
bool keep_agreeing(FoundLayouts& of, at::IntArrayRef sizes, const FoundLayouts& by,
                   at::IntArrayRef other_sizes) {
  return std::erase_if(of.layouts, [&](const auto& layout) {
           return std::none_of(by.layouts.begin(), by.layouts.end(), [&](const auto& other) {
             return example_stride(layout, sizes) == example_stride(other, other_sizes);
           });
         }) > 0;
}

/// Values that hold the same elements tell of each other: of [B·T, d], of which one token per example has a
/// gradient, NaN may not tell B·T from T·B, but of [B, T, d] it does.
void let_values_agree(const Tape& tape, const std::vector<TapeValue>& values,
                      std::vector<FoundLayouts>& found) {
  std::unordered_map<int64_t, size_t> place;  // of a node's first output
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].output == 0 && found[i].has_gradient) place.emplace(values[i].node, i);
  }
  for (bool is_new = true; is_new;) {
    is_new = false;
    for (const auto& [index, from] : place) {
      const auto& node = tape.node(index);
      for (const auto& use : node.consumers) {
        const auto taker = place.find(use.node);
        if (taker == place.end() || !keeps_order(tape, use)) continue;
        auto& a = found[from];
        auto& b = found[taker->second];
        if (a.layouts.empty() || b.layouts.empty()) continue;
        const auto& sizes = node.outputs[0].sizes;
        const auto& other_sizes = tape.node(use.node).outputs[0].sizes;
        is_new = keep_agreeing(a, sizes, b, other_sizes) || is_new;
        is_new = keep_agreeing(b, other_sizes, a, sizes) || is_new;
      }
    }
  }
}

}  // namespace

bool keeps_order(const Tape& tape, const TapeUse& use) {
  const auto& node = tape.node(use.node);
  const auto& from = node.inputs[static_cast<size_t>(use.input)].producer;
  if (node.outputs.empty() || from.output != 0) return false;
  const at::IntArrayRef before = tape.node(from.node).outputs[0].sizes,
                        after = node.outputs[0].sizes;
  if (node.op == TapeOp::elementwise) return before == after;
  const bool is_reshape = node.name == "ViewBackward0" || node.name == "UnsafeViewBackward0" ||
                          node.name == "ReshapeAliasBackward0" || node.name == "CloneBackward0" ||
                          node.name == "UnsqueezeBackward0" ||
                          node.name.starts_with("SqueezeBackward");
  return is_reshape && c10::multiply_integers(before) == c10::multiply_integers(after);
}

at::Tensor example_first(const at::Tensor& value, const ExampleLayout& layout) {
  auto sizes = value.sizes().vec();
  const auto at = sizes.begin() + layout.dim;
  *at = layout.inner;
  sizes.insert(sizes.begin() + layout.dim, {layout.outer, layout.examples});
  auto moved = value.reshape(sizes).movedim(layout.dim + 1, 0);  // [B, .., outer, inner, ..]
  if (layout.outer == 1 || layout.inner == 1) {
    return moved.squeeze(layout.outer == 1 ? layout.dim + 1 : layout.dim + 2);
  }
  return moved.flatten(layout.dim + 1, layout.dim + 2);
}

at::Tensor per_index(const at::Tensor& per_example, const ExampleLayout& layout) {
  return per_example.view({1, layout.examples, 1})
      .expand({layout.outer, layout.examples, layout.inner})
      .reshape({-1});
}

ExampleLayout flattened(at::IntArrayRef sizes, const ExampleLayout& layout, int64_t kept) {
  const auto dim = static_cast<size_t>(layout.dim);
  const auto before = sizes.slice(0, dim);
  const auto after = sizes.slice(dim + 1, sizes.size() - dim - 1 - static_cast<size_t>(kept));
  return {.dim = 0,
          .outer = c10::multiply_integers(before) * layout.outer,
          .examples = layout.examples,
          .inner = layout.inner * c10::multiply_integers(after)};
}

std::vector<FoundLayouts> find_layouts(const Tape& tape, const at::Tensor& losses,
                                       const std::vector<TapeValue>& values) {
  // A memory of what is found anyway: a function of the graph, one per thread, the latest first.
  static thread_local std::vector<Known> memory;
  constexpr size_t kRemembered = 64;
  auto signature = signature_of(tape, losses.numel(), values);
  for (const auto& known : memory) {
    if (auto found = recall(known, signature, tape, values)) return *std::move(found);
  }
  auto found = probe(tape, losses, values, std::vector<at::Tensor>(values.size()));
  const bool is_unclear = std::any_of(found.begin(), found.end(), [](const FoundLayouts& f) {
    return f.has_gradient && f.layouts.empty();
  });
  if (is_unclear) {  // 0 · NaN is NaN: an example that is not finite looks like a mixture
    const auto nan = always_nan(tape, losses, values);
    const bool is_finite = std::none_of(nan.begin(), nan.end(), [](const at::Tensor& where) {
      return where.defined() && where.any().item<bool>();
    });
    if (!is_finite) found = probe(tape, losses, values, nan);
  }
  let_values_agree(tape, values, found);
  const bool is_settled = std::none_of(found.begin(), found.end(), [](const FoundLayouts& f) {
    return f.has_gradient && f.layouts.size() > 1;
  });
  if (!is_settled) return found;  // another batch may tell
  memory.insert(memory.begin(), Known{std::move(signature), found});
  if (memory.size() > kRemembered) memory.pop_back();
  return found;
}

}  // namespace torchlore::detail
