#include "run_file.hpp"

#include <c10/util/Exception.h>

#include <ctime>
#include <optional>
#include <sstream>

namespace torchlore::detail {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "torchlore.run";
constexpr const char* kFormatVersion = "1";

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

void write_run_file(const fs::path& path, int64_t number, const Sections& sections) {
  StateDict tensors;
  std::string objects;  // by name, since an object without any state has no tensor to show it
  for (const auto& [name, state] : sections) {
    objects += name + "/";
    for (const auto& [key, tensor] : state) tensors.emplace(name + "/" + key, tensor);
  }
  write_tensors(path, tensors,
                {{"format", kFormat},
                 {"format_version", kFormatVersion},
                 {"objects", objects},
                 {"step", std::to_string(number)},
                 {"time", utc_now()},
                 {"torchlore_version", TORCHLORE_VERSION}});
}

TensorFile open_run_file(const fs::path& path) {
  const auto fail = [&](const std::string& reason) {
    TORCH_CHECK_VALUE(false, "cannot resume from '", path.string(), "': ", reason,
                      "; remove or repair the file to resume from the one before it");
  };
  std::optional<TensorFile> file;
  try {
    file = TensorFile::open(path);
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  }
  if (metadata_text(*file, "format") != kFormat) fail("it is not a run file of torchlore");
  const auto version = metadata_text(*file, "format_version");
  if (version != kFormatVersion) {
    fail("it has format version '" + version + "', and this torchlore reads '" + kFormatVersion +
         "'");
  }
  return *file;
}

Sections sections_of(const TensorFile& file) {
  Sections sections;
  std::istringstream names(metadata_text(file, "objects"));
  for (std::string name; std::getline(names, name, '/');) sections[name];
  for (const auto& [key, tensor] : file.tensors()) {
    const auto slash = key.find('/');
    const bool named = slash != std::string::npos;
    sections[key.substr(0, slash)].emplace(named ? key.substr(slash + 1) : "", tensor);
  }
  return sections;
}

std::string metadata_text(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? "" : found->second;
}

}  // namespace torchlore::detail
