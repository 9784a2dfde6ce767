#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "torchlore/core/state_dict.hpp"

/// Tensors on disk in the safetensors format, as Python's `safetensors` package reads and writes it.
namespace torchlore {

/// Text stored beside the tensors (the header's `__metadata__`).
using Metadata = std::map<std::string, std::string>;

/// Where one tensor lies in a file.
struct TensorInfo {
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape = {};
  uint64_t begin = 0;  ///< first byte, counted from the start of the data section
  uint64_t end = 0;    ///< one past the last byte
};

/// A safetensors file opened for reading. Tensors are views of the mapped file: nothing is read
/// until it is touched, and the mapping lives as long as any tensor of it. Writing to such a tensor
/// changes memory only, never the file (copy on write).
class TensorFile {
 public:
  /// Opens and checks a file: the header's syntax, and that the tensors cover the data exactly.
  /// @throws c10::ValueError naming the file, what is wrong with it and where, if it is truncated,
  ///         has a header that is oversized, not JSON, or not of the format, a duplicate or overlapping
  ///         tensor, a hole, an unknown dtype, or sizes that overflow.
  /// @throws c10::Error if it cannot be opened or mapped, with the system's reason.
  static TensorFile open(const std::filesystem::path& path);

  const std::map<std::string, TensorInfo>& infos() const;
  const Metadata& metadata() const;
  bool contains(const std::string& name) const;
  /// The tensor as a view of the mapping.
  /// @throws c10::ValueError naming the tensor and the file if it is not there.
  at::Tensor tensor(const std::string& name) const;
  /// All tensors.
  StateDict tensors() const;

 private:
  struct Impl;
  explicit TensorFile(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

/// Writes tensors to a safetensors file: whole, or not at all.
///
/// The bytes go to a temporary file in the same folder, which is flushed to the disk and renamed over
/// `path`; then the folder is flushed. Whatever fails, an old file at `path` stays as it was and
/// the temporary one is removed.
/// @param tensors  any device, any strides; written contiguous, sorted by descending alignment and
///                 name as the Python package does. Sparse tensors are refused.
/// @throws c10::ValueError for a dtype the format lacks or an invalid name; c10::Error with the
///         system's reason if writing fails (a full disk).
/// @note Host syncs: one per tensor on an accelerator.
void write_tensors(const std::filesystem::path& path, const StateDict& tensors,
                   const Metadata& metadata = {});

}  // namespace torchlore
