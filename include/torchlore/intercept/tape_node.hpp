#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

/// The plain data that a `Tape` is made of.
namespace torchlore {

/// What kind of operation a node of a `Tape` is. The node's own name tells which one exactly.
enum class TapeOp : uint8_t {
  leaf,         ///< a tensor that wants a gradient and was not computed: parameter or input
  addmm,        ///< beta·self + alpha·mat1·mat2; a 2-D `Linear` with bias (mat2 is W transposed)
  mm,           ///< self·mat2; any other `Linear`
  bmm,          ///< a batch of products
  baddbmm,      ///< beta·self + alpha·batch1·batch2
  addbmm,       ///< the same, summed over the batch
  mv,           ///< matrix · vector
  addmv,        ///< the same, added to a vector
  dot,          ///< vector · vector
  addr,         ///< an outer product, added to a matrix
  matmul,       ///< a product that the device's backend keeps whole
  linear,       ///< input·weightᵀ + bias that the device's backend keeps whole
  trilinear,    ///< the sum of products of three tensors; `Bilinear`
  convolution,  ///< all convolutions, transposed ones too
  embedding,    ///< rows of a table
  embedding_bag,  ///< sums, means or maxima of rows of a table
  layer_norm,     ///< statistics over the last dimensions
  rms_norm,       ///< the same, without the mean
  group_norm,     ///< statistics over groups of channels, per example
  instance_norm,  ///< statistics per example and channel (built by LibTorch from a batch norm)
  batch_norm,     ///< statistics over the batch
  rnn,            ///< a whole layer (or stack) of an LSTM, GRU or RNN
  lstm_cell,      ///< one step of an LSTM, fused
  gru_cell,       ///< one step of a GRU, fused
  attention,      ///< scaled dot-product attention, fused
  softmax,        ///< softmax and log-softmax
  dropout,        ///< dropout as one op (on the CPU it is a multiplication)
  prelu,          ///< leaky ReLU with a learned slope
  weight_norm,    ///< g·v/‖v‖
  elementwise,    ///< every output element depends on the input elements at its own place only
  reduction,      ///< sums, norms, maxima, … over dimensions; running ones; gated halves
  loss,           ///< a loss of LibTorch
  pooling,        ///< pooling and unpooling
  padding,        ///< padding by a constant, reflection or replication
  resampling,     ///< interpolation, grid sampling
  view,           ///< elements moved, repeated, copied or cast: view, t, expand, slice, split, …
  join,           ///< several tensors put together: cat, stack
  indexing,       ///< elements chosen, ordered or written by an index or a mask
  in_place_view,  ///< an in-place op on a view, seen from the view's base
  unknown         ///< none of these: only the name, the edges and the shapes are known
};

/// The kind's name, as written in code.
const char* to_string(TapeOp op);

/// Whether the op moves, repeats, copies or casts elements of one input and computes nothing
/// (`TapeOp::view`): a parameter is looked for behind it.
constexpr bool is_view(TapeOp op) { return op == TapeOp::view; }

/// One output of one node.
struct TapeValue {
  int64_t node = -1;   ///< index of the node in `Tape::nodes()`
  int64_t output = 0;  ///< which of its outputs

  /// Equal node and output.
  bool operator==(const TapeValue&) const = default;
};

/// One input of one node: where a value or a parameter is used.
struct TapeUse {
  int64_t node = -1;  ///< index of the node in `Tape::nodes()`
  int64_t input = 0;  ///< which of its `inputs`

  /// Equal node and input.
  bool operator==(const TapeUse&) const = default;
};

/// Shape and type of a value.
struct TapeTensor {
  std::vector<int64_t> sizes = {};                   ///< empty for a 0-d tensor; see also `known`
  at::ScalarType dtype = at::ScalarType::Undefined;  ///< its element type
  c10::Device device = at::kCPU;                     ///< where it lies
  /// False for a nested tensor, which has no one shape, and for an output without a gradient.
  bool known = false;
};

/// One input of an op, among those that can have a gradient.
struct TapeInput {
  /// The argument's name in LibTorch's schema ("self", "mat1", "weight", …); empty where unknown.
  std::string_view name = {};
  /// Where it was computed; node -1 if it needs no gradient, and so is not on the tape.
  TapeValue producer = {};
  /// The leaf that it is, directly or through nothing but views and casts: an index into
  /// `Tape::parameters()`, or -1.
  int64_t parameter = -1;
};

/// One tensor that the op saved for its backward.
struct TapeSaved {
  /// The argument's name in LibTorch's schema, or a result's ("mean", "rstd", "mask", "result").
  std::string name = {};
  /// Detached; shares memory with what autograd saved.
  at::Tensor tensor = {};
  /// The tensor's version when the tape was made.
  int64_t version = 0;

  /// Whether the tensor was written in place since the tape was made.
  bool changed() const;
};

/// What an attribute can be. A dtype is an `at::ScalarType`, a missing optional is left out.
using TapeAttributeValue =
    std::variant<bool, int64_t, double, std::vector<int64_t>, std::string, at::ScalarType>;

/// A setting of an op: "stride", "eps", "dim", …
struct TapeAttribute {
  std::string_view name = {};     ///< the argument's name in LibTorch's schema
  TapeAttributeValue value = {};  ///< its value
};

/// One op of the forward, as autograd keeps it. Inputs and outputs are the forward's.
struct TapeNode {
  int64_t index = -1;                          ///< its place in `Tape::nodes()`
  TapeOp op = TapeOp::unknown;                 ///< what it is
  std::string name = {};                       ///< autograd's own name: "AddmmBackward0"
  std::vector<TapeInput> inputs = {};          ///< those that can have a gradient, in order
  std::vector<TapeTensor> outputs = {};        ///< shape and type of each output
  std::vector<TapeSaved> saved = {};           ///< what it saved, where the tape keeps it
  std::vector<TapeAttribute> attributes = {};  ///< its settings
  std::vector<TapeUse> consumers = {};         ///< who uses its outputs

  /// The saved tensor of that name; undefined if the op did not save it, or the tape does not keep
  /// it. (Ops save what their backward needs: `mm` keeps `self` only if `mat2` wants a gradient.)
  /// @throws c10::Error if it was written in place since the tape was made.
  at::Tensor saved_tensor(std::string_view which) const;

  /// The input of that name. @throws c10::ValueError if there is none; the text lists those there.
  const TapeInput& input(std::string_view which) const;

  /// The setting of that name, nullptr if the op has none.
  const TapeAttributeValue* find_attribute(std::string_view which) const;

  /// The setting of that name. T is one of the types of `TapeAttributeValue`.
  /// @throws c10::ValueError if the op has none of that name and type.
  template <typename T>
  const T& attribute(std::string_view which) const {
    const auto* value = find_attribute(which);
    const T* typed = value != nullptr ? std::get_if<T>(value) : nullptr;
    if (typed == nullptr) refuse_attribute(which, value != nullptr);
    return *typed;
  }

 private:
  [[noreturn]] void refuse_attribute(std::string_view which, bool is_there) const;
};

}  // namespace torchlore
