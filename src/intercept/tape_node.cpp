#include "torchlore/intercept/tape_node.hpp"

#include <c10/util/Exception.h>

#include <algorithm>

namespace torchlore {
namespace {

template <typename T>
auto find_named(const std::vector<T>& items, std::string_view name) {
  return std::find_if(items.begin(), items.end(), [&](const T& item) { return item.name == name; });
}

/// "a, b and c" of the items' names, for error texts.
template <typename T>
std::string names_of(const std::vector<T>& items) {
  std::string all;
  for (const auto& item : items) {
    if (!all.empty()) all += ", ";
    all += item.name.empty() ? std::string_view("(unnamed)") : std::string_view(item.name);
  }
  return all.empty() ? "none" : all;
}

}  // namespace

const char* to_string(TapeOp op) {
  static constexpr const char* kNames[] = {
      "leaf",          "addmm",      "mm",        "bmm",           "baddbmm",
      "addbmm",        "mv",         "addmv",     "dot",           "addr",
      "matmul",        "linear",     "trilinear", "convolution",   "embedding",
      "embedding_bag", "layer_norm", "rms_norm",  "group_norm",    "instance_norm",
      "batch_norm",    "rnn",        "lstm_cell", "gru_cell",      "attention",
      "softmax",       "dropout",    "prelu",     "weight_norm",   "elementwise",
      "reduction",     "loss",       "pooling",   "padding",       "resampling",
      "view",          "join",       "indexing",  "in_place_view", "unknown"};
  static_assert(std::size(kNames) == static_cast<size_t>(TapeOp::unknown) + 1);
  return kNames[static_cast<size_t>(op)];
}

bool TapeSaved::changed() const {
  return tensor.defined() && !tensor.is_inference() && tensor._version() != version;
}

at::Tensor TapeNode::saved_tensor(std::string_view which) const {
  const auto found = find_named(saved, which);
  if (found == saved.end()) return {};
  TORCH_CHECK(!found->changed(), "'", which, "', saved by node ", index, " (", name,
              "), was written in place after the tape was made; read it before, or clone it");
  return found->tensor;
}

const TapeInput& TapeNode::input(std::string_view which) const {
  const auto found = find_named(inputs, which);
  TORCH_CHECK_VALUE(found != inputs.end(), "node ", index, " (", name, ") has no input named '",
                    which, "'; it has: ", names_of(inputs));
  return *found;
}

const TapeAttributeValue* TapeNode::find_attribute(std::string_view which) const {
  const auto found = find_named(attributes, which);
  return found != attributes.end() ? &found->value : nullptr;
}

void TapeNode::refuse_attribute(std::string_view which, bool is_there) const {
  TORCH_CHECK_VALUE(!is_there, "attribute '", which, "' of node ", index, " (", name,
                    ") is of another type");
  TORCH_CHECK_VALUE(false, "node ", index, " (", name, ") has no attribute named '", which,
                    "'; it has: ", names_of(attributes));
}

}  // namespace torchlore
