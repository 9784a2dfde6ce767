#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "torchlore/core/state_dict.hpp"
#include "torchlore/core/tensor_file.hpp"

namespace torchlore::detail {

/// The states of a run's objects by name.
using Sections = std::map<std::string, StateDict>;

void write_run_file(const std::filesystem::path& path, int64_t number, const Sections& sections);

/// Opens a run file; the error about one that cannot be used says what to do.
TensorFile open_run_file(const std::filesystem::path& path);

/// What `write_run_file` was given. The tensors are views of the file.
Sections sections_of(const TensorFile& file);

/// An entry of the file's metadata; empty if it is not there.
std::string metadata_text(const TensorFile& file, const std::string& key);

}  // namespace torchlore::detail
