#include "run_folder.hpp"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

namespace torchlore::detail {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kSuffix = ".safetensors";
constexpr size_t kDigits = 8;

std::optional<int64_t> run_number(std::string_view name) {
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(kSuffix.size());
  int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  // Only names that `run_file` makes: a copy named step-1.safetensors is the user's.
  const bool ours = error == std::errc() && end == name.data() + name.size() && number >= 0 &&
                    name.size() >= kDigits && name.front() != '-';
  return ours ? std::optional(number) : std::nullopt;
}

/// Who holds the lock, as far as the lock file tells.
std::string owner_text(int descriptor) {
  char text[32] = {};
  const auto size = ::pread(descriptor, text, sizeof(text) - 1, 0);
  return size > 0 ? "process " + std::string(text) : "another process";
}

void write_owner(int descriptor) {
  const auto text = std::to_string(::getpid());
  // The text only serves an error message, so a full disk does not matter here.
  if (::ftruncate(descriptor, 0) == 0) {
    [[maybe_unused]] const auto written = ::pwrite(descriptor, text.data(), text.size(), 0);
  }
}

}  // namespace

std::map<int64_t, fs::path> run_files(const fs::path& folder) {
  std::map<int64_t, fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (const auto number = run_number(it->path().filename().string())) {
      files.emplace(*number, it->path());
    }
  }
  TORCH_CHECK(!error || error == std::errc::no_such_file_or_directory,
              "cannot read the run folder '", folder.string(), "': ", error.message());
  return files;
}

fs::path run_file(const fs::path& folder, int64_t number) {
  auto digits = std::to_string(number);
  digits.insert(0, kDigits - std::min(kDigits, digits.size()), '0');
  return folder / (std::string(kPrefix) + digits + std::string(kSuffix));
}

void remove_old_run_files(const fs::path& folder, int64_t keep) {
  auto files = run_files(folder);
  for (; files.size() > static_cast<size_t>(keep); files.erase(files.begin())) {
    std::error_code error;
    fs::remove(files.begin()->second, error);
    if (error) {
      TORCH_WARN("cannot remove the old run file '", files.begin()->second.string(),
                 "': ", error.message());
    }
  }
}

FolderLock::FolderLock(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  TORCH_CHECK(!error, "cannot make the run folder '", folder.string(), "': ", error.message());
  const auto path = folder / ".torchlore-lock";
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  TORCH_CHECK(descriptor_ >= 0, "cannot write in the run folder '", folder.string(),
              "': ", std::strerror(errno));
  // A file system without locks (some network ones) goes unguarded.
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
    write_owner(descriptor_);
    return;
  }
  const auto owner = owner_text(descriptor_);
  ::close(descriptor_);
  TORCH_CHECK_VALUE(false, "the run folder '", folder.string(), "' is in use by ", owner,
                    "; end that run or choose another folder");
}

FolderLock::~FolderLock() { ::close(descriptor_); }

}  // namespace torchlore::detail
