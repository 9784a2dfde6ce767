#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "torchlore/core/tensor_file.hpp"

/// The header of a safetensors file, apart from any file: parsed from memory, and written to it.
namespace torchlore::detail {

/// The format's own limit, as the Python package sets it.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

/// How many bytes give the size of the header, before it.
inline constexpr uint64_t kSizeBytes = 8;

/// The header's entry that is no tensor.
inline constexpr const char* kMetadataKey = "__metadata__";

/// A name for an error's text: hostile files have names of any length.
std::string in_quotes(const std::string& name);

struct Header {
  std::map<std::string, TensorInfo> infos = {};
  Metadata metadata = {};
  uint64_t data_offset = 0;  ///< where the data section starts, in bytes from the file's start
};

/// Parses and checks the header of a whole file that lies in memory.
/// @param file the file's name, for the error's text.
/// @throws c10::ValueError as `TensorFile::open`.
Header parse_header(std::string_view bytes, const std::string& file);

/// Makes a tensor of the bytes at `data`: a view that keeps `owner` alive, or a copy where `data`
/// is not aligned for the dtype.
at::Tensor view_tensor(char* data, const std::string& name, const TensorInfo& info,
                       std::shared_ptr<const void> owner, const std::string& file);

/// The head of a file to be written: size, JSON and padding, and the order of the data behind it.
struct Layout {
  std::string head = {};
  std::vector<const at::Tensor*> order = {};
};

/// Checks what is to be written and lays it out.
/// @throws c10::ValueError, c10::TypeError as `write_tensors`.
Layout make_layout(const StateDict& tensors, const Metadata& metadata);

}  // namespace torchlore::detail
