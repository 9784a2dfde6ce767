#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "torchlore/intercept/tape.hpp"

/// Where the example lies in a value.
namespace torchlore::detail {

/// The elements of example e are those whose index i in dimension `dim` has (i / inner) % examples == e:
/// the dimension, of size outer·examples·inner, is laid out [outer, examples, inner].
struct ExampleLayout {
  int64_t dim = 0;
  int64_t outer = 1;
  int64_t examples = 1;
  int64_t inner = 1;

  /// How many indices of the dimension are of one example.
  int64_t per_example() const { return outer * inner; }
  bool operator==(const ExampleLayout&) const = default;
};

/// [.., outer·B·inner, ..] → [B, .., outer·inner, ..]: the example first, the dimension at its place
/// behind it. A copy only where the strides ask for it.
at::Tensor example_first(const at::Tensor& value, const ExampleLayout& layout);

/// One number per example → one per index of the dimension: [B] → [outer·B·inner].
at::Tensor per_index(const at::Tensor& per_example, const ExampleLayout& layout);

/// The layout after all dimensions but the last `kept` are made one: [a, .., z, d] → [a·..·z, d].
/// `layout.dim` is one of those made one.
ExampleLayout flattened(at::IntArrayRef sizes, const ExampleLayout& layout, int64_t kept);

/// What was found out about the gradient by one value.
struct FoundLayouts {
  bool has_gradient = false;  ///< whether any arrives
  /// All layouts that fit: one if all is well, none if examples are mixed there (or the value does not
  /// belong to examples), several if it cannot be told.
  std::vector<ExampleLayout> layouts = {};
};

/// Whether an op's output has the elements of one of its inputs in the same order: a reshape, or an op
/// element by element. Examples then lie in both alike.
bool keeps_order(const Tape& tape, const TapeUse& use);

/// Finds the layouts of the gradients by `values`: NaN is sent from one example's loss, 0 from the
/// others'; where NaN arrives is that example. Where that leaves a choice, values decide that `keeps_order`
/// connects, if they are asked for too. Remembered per thread by what the graph is made of.
/// @param losses at least two examples; the tape's loss.
std::vector<FoundLayouts> find_layouts(const Tape& tape, const at::Tensor& losses,
                                       const std::vector<TapeValue>& values);

}  // namespace torchlore::detail
