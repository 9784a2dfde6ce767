#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "../../src/core/tensor_file_header.hpp"

namespace torchlore::testing {

inline void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzzing found: %s\n", what);
  std::abort();
}

/// The bytes of a tensor, all of them read.
inline std::string bytes_of_tensor(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

/// What is written for these tensors, in memory.
inline std::string written(const StateDict& tensors, const Metadata& metadata) {
  const auto layout = detail::make_layout(tensors, metadata);
  std::string bytes = layout.head;
  for (const at::Tensor* tensor : layout.order) bytes += bytes_of_tensor(*tensor);
  return bytes;
}

/// The tensors of a file in memory; those that LibTorch cannot hold are left out.
inline StateDict tensors_of(char* data, const detail::Header& header) {
  StateDict tensors;
  for (const auto& [name, info] : header.infos) {
    try {
      tensors[name] =
          detail::view_tensor(data + header.data_offset + info.begin, name, info, nullptr, "fuzz");
    } catch (const c10::NotImplementedError&) {  // F6, odd F4
    } catch (const c10::ValueError&) {           // a BOOL of neither 0 nor 1
    }
  }
  return tensors;
}

/// Reads any bytes as a safetensors file. They are refused with a `c10::ValueError`, or all tensors
/// can be read, and what is written from them reads the same.
/// @return true if the file was accepted.
inline bool fuzz_tensor_file(const uint8_t* data, size_t size) {
  // A block of exactly this size, so that the address sanitizer sees one byte too many.
  const std::unique_ptr<char[]> copy(new char[size]);
  if (size > 0) std::memcpy(copy.get(), data, size);
  detail::Header header;
  try {
    header = detail::parse_header({copy.get(), size}, "fuzz");
  } catch (const c10::ValueError&) {
    return false;
  }
  const auto tensors = tensors_of(copy.get(), header);
  auto again = written(tensors, header.metadata);
  const auto second = detail::parse_header(again, "fuzz");
  require(second.metadata == header.metadata, "other metadata after a round trip");
  require(second.infos.size() == tensors.size(), "another number of tensors after a round trip");
  for (const auto& [name, tensor] : tensors_of(again.data(), second)) {
    require(second.infos.at(name).shape == header.infos.at(name).shape, "another shape");
    require(tensor.scalar_type() == tensors.at(name).scalar_type(), "another dtype");
    require(bytes_of_tensor(tensor) == bytes_of_tensor(tensors.at(name)), "other data");
  }
  return true;
}

}  // namespace torchlore::testing
