#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Text to train on: which files, what is held out, and clear errors when they are not text.
namespace text {

namespace fs = std::filesystem;

/// The bytes of all files, in sorted order, each followed by a NUL byte (the end-of-file token).
struct Corpus {
  std::string training;
  std::string held_out;
  int64_t files = 0;
  int64_t held_out_files = 0;  ///< 0: too few files, the last 5 % of each one is held out.
};

/// Enough files for a split by file: every 20th is held out, none of its bytes is trained on.
inline constexpr size_t kHoldOutEvery = 20;

/// The whole file.
/// @throws c10::ValueError if it cannot be read, is empty, or is not text.
inline std::string read_text(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK_VALUE(!error && file, "cannot read the corpus file \"", path.string(),
                    "\": ", error ? error.message() : std::strerror(errno),
                    "; pass files or folders of text by --data");
  TORCH_CHECK_VALUE(size > 0, "the corpus file \"", path.string(),
                    "\" is empty; pass files or folders of text by --data");
  std::string text(size, '\0');
  file.read(text.data(), static_cast<std::streamsize>(size));
  TORCH_CHECK_VALUE(file.gcount() == static_cast<std::streamsize>(size), "the corpus file \"",
                    path.string(), "\" ended after ", file.gcount(), " of ", size,
                    " bytes; is it being written?");
  const auto nul = text.find('\0');
  TORCH_CHECK_VALUE(nul == std::string::npos, "the corpus file \"", path.string(),
                    "\" is not text: byte ", nul,
                    " is 0; decompress or convert it, or pass other files by --data");
  return text;
}

/// All regular files of a folder and its subfolders, sorted; with `extensions`, only those.
inline std::vector<fs::path> files_of(const fs::path& folder,
                                      const std::vector<std::string>& extensions = {}) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const auto extension = entry.path().extension().string();
    const bool wanted = extensions.empty() || std::find(extensions.begin(), extensions.end(),
                                                        extension) != extensions.end();
    if (wanted && entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  TORCH_CHECK_VALUE(!files.empty(), "the corpus folder \"", folder.string(),
                    "\" holds no text file; pass files or folders of text by --data");
  return files;
}

/// Splits and joins files in the order given: deterministic, and by file where there are enough.
inline Corpus read_corpus(const std::vector<fs::path>& files) {
  Corpus corpus;
  corpus.files = static_cast<int64_t>(files.size());
  const bool by_file = files.size() >= kHoldOutEvery;
  for (size_t i = 0; i < files.size(); ++i) {
    const auto text = read_text(files[i]);
    const bool held_out = by_file && i % kHoldOutEvery == kHoldOutEvery / 2;
    const auto train_bytes = by_file ? (held_out ? 0 : text.size()) : text.size() * 19 / 20;
    const std::string_view train(text.data(), train_bytes);
    const std::string_view rest(text.data() + train_bytes, text.size() - train_bytes);
    if (!train.empty()) corpus.training.append(train).push_back('\0');
    if (!rest.empty()) corpus.held_out.append(rest).push_back('\0');
    corpus.held_out_files += held_out ? 1 : 0;
  }
  return corpus;
}

/// What the user named: files as given, folders with all they hold.
inline Corpus read_data(const std::vector<std::string>& names) {
  std::vector<fs::path> files;
  for (const auto& name : names) {
    if (fs::is_directory(name)) {
      const auto inside = files_of(name);
      files.insert(files.end(), inside.begin(), inside.end());
    } else {
      files.emplace_back(name);
    }
  }
  std::sort(files.begin(), files.end());
  return read_corpus(files);
}

/// LibTorch's own C++ headers: real text that every user of LibTorch has.
/// @param include the folder that holds `ATen`, `c10` and `torch`.
inline Corpus read_headers(const fs::path& include) {
  TORCH_CHECK_VALUE(fs::is_directory(include / "ATen"), "LibTorch's headers are not in \"",
                    include.string(), "\", where they were when this program was built; ",
                    "pass files or folders of text by --data");
  std::vector<fs::path> files;
  for (const char* part : {"ATen", "c10", "torch"}) {
    const auto inside = files_of(include / part, {".h", ".hpp"});
    files.insert(files.end(), inside.begin(), inside.end());
  }
  return read_corpus(files);
}

/// @throws c10::ValueError unless both parts hold a window of `context` bytes and the byte after
/// it.
inline void check_long_enough(const Corpus& corpus, int64_t context) {
  const auto needed = static_cast<size_t>(context) + 1;
  TORCH_CHECK_VALUE(corpus.training.size() >= needed && corpus.held_out.size() >= needed,
                    "the corpus is too short: ", corpus.training.size(), " bytes to train on and ",
                    corpus.held_out.size(), " held out, but --context ", context, " needs ", needed,
                    " of each; pass more text by --data or a shorter --context");
}

/// Tells one corpus from another (FNV-1a): a run must not go on with other text.
inline uint64_t fingerprint(const Corpus& corpus) {
  uint64_t hash = 14695981039346656037ULL;
  for (const auto* part : {&corpus.training, &corpus.held_out}) {
    for (const char c : *part) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  }
  return hash;
}

}  // namespace text
