#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Scalar.h>
#include <c10/core/SymInt.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <typeindex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "autograd_node.hpp"
#include "torchlore/intercept/tape_node.hpp"

/// What is known of autograd's nodes: for each type of node its kind, the names of its inputs, and how
/// to read what it saved.
namespace torchlore::detail {

struct TapeReader;

/// Takes up the members of one node as saved tensors and attributes of a `TapeNode`.
class TapeRecorder {
 public:
  TapeRecorder(torch::autograd::Node& from, const TapeReader& reader, bool keep_saved, TapeNode& to)
      : from_(from), reader_(reader), keep_saved_(keep_saved), to_(to) {}

  void operator()(std::string_view name, const torch::autograd::SavedVariable& saved);
  void operator()(std::string_view name, const std::vector<torch::autograd::SavedVariable>& saved);
  void operator()(std::string_view name, const std::vector<c10::SymInt>& value);
  void operator()(std::string_view name, const c10::SymInt& value);
  void operator()(std::string_view name, const at::Scalar& value);
  void operator()(std::string_view name, const at::TensorOptions& value);
  template <typename T>
  requires requires(TapeAttributeValue value) { std::get<T>(value); }
  void operator()(std::string_view name, const T& value) {
    auto& attribute = to_.attributes.emplace_back();
    attribute.name = name;
    attribute.value = value;
  }
  template <typename T>
  void operator()(std::string_view name, const std::optional<T>& value) {
    if (value.has_value()) (*this)(name, *value);
  }
  template <typename T>
  void operator()(std::string_view name, const c10::OptionalArray<T>& value) {
    (*this)(name, value.list);
  }

  /// For members that are lists: an empty one may be a freed one.
  void check_not_released(bool released) const;

 private:
  void record(std::string name, const torch::autograd::SavedVariable& saved);

  torch::autograd::Node& from_;
  const TapeReader& reader_;
  bool keep_saved_;
  TapeNode& to_;
};

using TapeNames = std::vector<std::string_view>;
using TapeRenames = std::vector<std::pair<std::string_view, std::string_view>>;

/// What is known of one type of node.
struct TapeReader {
  TapeOp op = TapeOp::unknown;
  TapeNames inputs = {};     ///< one may end in "…": a list, which takes what the others leave
  TapeRenames results = {};  ///< what "result1", … are
  void (*read)(torch::autograd::Node&, TapeRecorder&) = nullptr;
};

using TapeReaders = std::unordered_map<std::type_index, TapeReader>;

void add_layer_readers(TapeReaders& readers);
void add_other_readers(TapeReaders& readers);

/// What is known of a node; of an unknown one, nothing.
const TapeReader& tape_reader(const torch::autograd::Node& node);

/// The name of the input at `position` of `count`; empty if the count is not the one that is known.
std::string_view tape_input_name(const TapeReader& reader, size_t position, size_t count);

}  // namespace torchlore::detail
