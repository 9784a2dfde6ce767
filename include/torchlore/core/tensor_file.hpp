#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "torchlore/core/state_dict.hpp"

/// Tensors on disk in the safetensors format, as Python's `safetensors` package reads and writes
/// it.
namespace torchlore {

/// Text stored beside the tensors (the header's `__metadata__`).
using Metadata = std::map<std::string, std::string>;

/// What a file says about one tensor.
struct TensorInfo {
  at::ScalarType dtype = at::ScalarType::Undefined;  ///< Undefined where LibTorch has none (F6_…)
  std::string format_dtype = {};    ///< the format's own name, such as "F32" or "BF16"
  std::vector<int64_t> shape = {};  ///< in elements; F4 counts single ones, LibTorch counts pairs
  uint64_t begin = 0;               ///< first byte, counted from the start of the data section
  uint64_t end = 0;                 ///< one past the last byte
};

/// A safetensors file opened for reading. Tensors are views of the mapped file: nothing is read
/// until it is touched, and the mapping lives as long as any tensor of it. Writing to such a tensor
/// changes memory only, never the file (copy on write).
///
/// ```cpp
/// auto file = torchlore::TensorFile::open("model.safetensors");
/// at::Tensor weight = file.tensor("encoder.weight");
/// ```
/// The file must not be changed in place or shortened while tensors of it live; replacing it by
/// `write_tensors` is safe, they keep the old one.
class TensorFile {
 public:
  /// Opens and checks a file: the header's syntax, and that the tensors cover the data exactly.
  /// @throws c10::ValueError naming the file, what is wrong with it and where, if it is cut off,
  ///         has a header that is over 100 MB, not JSON or not of the format, a duplicate key,
  ///         tensors that overlap or leave a hole, an unknown dtype, or sizes that overflow.
  /// @throws c10::Error if it cannot be opened or mapped, with the system's reason.
  static TensorFile open(const std::filesystem::path& path);

  /// What is in the file, by name.
  const std::map<std::string, TensorInfo>& infos() const;
  /// The texts stored beside the tensors.
  const Metadata& metadata() const;
  /// True if the file has a tensor of this name.
  bool contains(const std::string& name) const;
  /// The tensor, as a view of the mapping. It is a copy instead where the file's writer left the
  /// data unaligned for the dtype.
  /// @throws c10::ValueError naming the tensor and the file if it is not there, or if a BOOL holds
  ///         a byte other than 0 and 1 (bools alone are read and checked here).
  /// @throws c10::NotImplementedError for a dtype LibTorch lacks (F6_E2M3, F6_E3M2; F4 with an odd
  ///         last dimension).
  at::Tensor tensor(const std::string& name) const;
  /// All tensors, as `tensor` gives them.
  StateDict tensors() const;

 private:
  struct Impl;
  explicit TensorFile(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

/// Writes tensors to a safetensors file: whole, or not at all.
///
/// The bytes go to a temporary file in the same folder (`.torchlore-<pid>-<n>.tmp`), which is
/// flushed to the disk and renamed over `path`; then the folder is flushed. Whatever fails, an old
/// file at `path` stays as it was and the temporary one is removed. Temporary files that killed
/// processes left in the folder are removed by the next write. A symbolic link at `path` is
/// replaced.
/// @param path     the file; its folder must exist.
/// @param tensors  any device, any strides; written contiguous, in the order and bytes of the
///                 Python package (wide dtypes first, then by name). Views of the file that is
///                 replaced are fine. Tensors that share memory are written once per name.
/// @param metadata texts to store beside them, in UTF-8.
/// @throws c10::TypeError for a sparse tensor or a dtype the format lacks (complex128, quantized);
///         c10::ValueError for a name that is "__metadata__" or not UTF-8, a tensor without data,
///         or over 100 MB of names; both before anything is written. c10::Error with the system's
///         reason if writing fails (a full disk).
/// @note Extra memory: one tensor at most, if it is not contiguous on the CPU. Host syncs: one per
///       tensor on an accelerator.
void write_tensors(const std::filesystem::path& path, const StateDict& tensors,
                   const Metadata& metadata = {});

}  // namespace torchlore
