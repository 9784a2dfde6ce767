#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tensor_file_dtype.hpp"
#include "tensor_file_header.hpp"

namespace torchlore::detail {
namespace {

/// A string as JSON, with the escapes that the Python package writes.
std::string json_string(const std::string& text, const char* what) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    TORCH_CHECK_VALUE(false, what, " must be valid UTF-8, but is ", in_quotes(text));
  }
}

/// Checks one tensor to be written and gives its dtype in the format.
const FormatDtype& checked_dtype(const std::string& name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(name != kMetadataKey, "a tensor cannot be named '", kMetadataKey,
                    "': the format keeps this name for the metadata");
  TORCH_CHECK_VALUE(tensor.defined(), "tensor ", in_quotes(name), " is undefined");
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided && !tensor.is_nested(), "tensor ",
                   in_quotes(name), " is not dense; write tensor.to_dense(), or its parts");
  TORCH_CHECK_VALUE(!tensor.is_meta(), "tensor ", in_quotes(name),
                    " is on the meta device and has no data");
  const auto* dtype = find_dtype(tensor.scalar_type());
  TORCH_CHECK_TYPE(dtype != nullptr, "tensor ", in_quotes(name), " has dtype ",
                   tensor.scalar_type(), ", which safetensors files lack; convert it first");
  TORCH_CHECK_VALUE(dtype->dtype != kPairDtype || tensor.dim() > 0, "tensor ", in_quotes(name),
                    " holds a pair of 4-bit numbers and must have a dimension");
  return *dtype;
}

void check_header_size(uint64_t size) {
  TORCH_CHECK_VALUE(size <= kMaxHeaderBytes, "the names, shapes and metadata take ", size,
                    " bytes, more than the ", kMaxHeaderBytes, " a safetensors header may have");
}

/// Refuses hopeless amounts of text before any of it is turned into JSON.
void check_text_size(const StateDict& tensors, const Metadata& metadata) {
  uint64_t size = 0;
  for (const auto& [name, tensor] : tensors) size += name.size();
  for (const auto& [key, value] : metadata) size += key.size() + value.size();
  check_header_size(size);
}

struct Entry {
  const std::string* name;
  const at::Tensor* tensor;
  const FormatDtype* dtype;
};

/// Adds an item to a list of JSON.
void append(std::string& list, const std::string& item) {
  if (!list.empty()) list += ',';
  list += item;
}

std::string tensor_json(const Entry& entry, uint64_t begin, uint64_t end) {
  auto sizes = entry.tensor->sizes().vec();
  if (entry.dtype->dtype == kPairDtype) sizes.back() *= 2;
  std::string shape;
  for (const int64_t size : sizes) append(shape, std::to_string(size));
  return c10::str(json_string(*entry.name, "the name of a tensor"), R"(:{"dtype":")",
                  entry.dtype->name, R"(","shape":[)", shape, R"(],"data_offsets":[)", begin, ",",
                  end, "]}");
}

std::string metadata_json(const Metadata& metadata) {
  std::string texts;
  for (const auto& [key, value] : metadata) {
    append(texts, c10::str(json_string(key, "a key of the metadata"), ":",
                           json_string(value, "the metadata's text")));
  }
  return c10::str("\"", kMetadataKey, "\":{", texts, "}");
}

}  // namespace

Layout make_layout(const StateDict& tensors, const Metadata& metadata) {
  check_text_size(tensors, metadata);
  std::vector<Entry> entries;
  entries.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({&name, &tensor, &checked_dtype(name, tensor)});
  }
  // Stable: within a dtype the map's order by name stays.
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.dtype > b.dtype; });

  Layout layout;
  std::string json = metadata.empty() ? "" : metadata_json(metadata);
  uint64_t offset = 0;
  for (const auto& entry : entries) {
    const uint64_t end = offset + entry.tensor->nbytes();
    append(json, tensor_json(entry, offset, end));
    layout.order.push_back(entry.tensor);
    offset = end;
  }
  json = c10::str("{", json, "}");
  json.append((8 - json.size() % 8) % 8, ' ');  // aligns the data
  const uint64_t size = json.size();
  check_header_size(size);
  layout.head.resize(kSizeBytes);
  std::memcpy(layout.head.data(), &size, kSizeBytes);
  layout.head += json;
  return layout;
}

}  // namespace torchlore::detail
