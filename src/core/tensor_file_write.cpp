#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "tensor_file_header.hpp"

namespace torchlore {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTemporaryPrefix = ".torchlore-";
constexpr std::string_view kTemporarySuffix = ".tmp";

/// A file that is not there under its own name until `commit`; removed if that never happens.
///
/// It stays locked while its writer lives, so that another writer can tell a leftover of a killed
/// process from a file that is being written.
class TemporaryFile {
 public:
  explicit TemporaryFile(const fs::path& target) : target_(target), folder_(target.parent_path()) {
    if (folder_.empty()) folder_ = ".";
    TORCH_CHECK(!fs::is_directory(target_), "cannot write '", target_.string(),
                "': it is a directory");
    TORCH_CHECK(target_.has_filename(), "cannot write '", target_.string(),
                "': it is not the name of a file");
    do {
      create();
    } while (!lock());
  }
  ~TemporaryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!committed_) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(const char* data, size_t size) {
    while (size > 0) {
      const ssize_t written = ::write(descriptor_, data, size);
      if (written < 0 && errno == EINTR) continue;
      check(written > 0, "writing its data");
      data += written;
      size -= static_cast<size_t>(written);
    }
  }

  /// Puts the file in place of the target, durably.
  void commit() {
    check(::fsync(descriptor_) == 0, "flushing it to the disk");
    check(std::rename(path_.c_str(), target_.c_str()) == 0, "renaming the temporary file");
    committed_ = true;
    check(::close(std::exchange(descriptor_, -1)) == 0, "closing it");
    flush_folder();
  }

 private:
  /// A short name of its own: the target's may already be as long as the file system allows.
  void create() {
    static std::atomic<int64_t> counter{0};
    path_ = folder_ / (std::string(kTemporaryPrefix) + std::to_string(::getpid()) + "-" +
                       std::to_string(counter++) + std::string(kTemporarySuffix));
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    check(descriptor_ >= 0 || errno == EEXIST, "creating a temporary file beside it");
  }

  /// False if the name was taken, or if another writer removed the file before it was locked.
  bool lock() {
    if (descriptor_ < 0) return false;
    struct stat status {};
    while (::flock(descriptor_, LOCK_EX) != 0) {
      if (errno != EINTR) return true;  // a file system without locks: no leftovers removed either
    }
    if (::fstat(descriptor_, &status) == 0 && status.st_nlink > 0) return true;
    ::close(std::exchange(descriptor_, -1));
    return false;
  }

  void flush_folder() {
    const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(folder >= 0, "opening its folder");
    // Some file systems cannot flush a folder (EINVAL); they have nothing to flush.
    const bool flushed = ::fsync(folder) == 0 || errno == EINVAL;
    const int reason = errno;
    ::close(folder);
    errno = reason;
    check(flushed, "flushing its folder to the disk");
  }

  void check(bool ok, const char* doing) const {
    TORCH_CHECK(ok, "cannot write '", target_.string(), "': ", doing,
                " failed: ", std::strerror(errno));
  }

  fs::path target_, folder_, path_;
  int descriptor_ = -1;
  bool committed_ = false;
};

/// Removes the temporary files of killed writers: those that nobody holds a lock on. Whatever goes
/// wrong here does not matter to the file that is to be written.
void remove_leftovers(const fs::path& folder) {
  std::error_code ignored;
  for (fs::directory_iterator entry(folder.empty() ? "." : folder, ignored), end;
       !ignored && entry != end; entry.increment(ignored)) {
    const auto name = entry->path().filename().string();
    if (!name.starts_with(kTemporaryPrefix) || !name.ends_with(kTemporarySuffix)) continue;
    const int descriptor = ::open(entry->path().c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (descriptor < 0) continue;
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(entry->path().c_str());
    ::close(descriptor);
  }
}

}  // namespace

void write_tensors(const fs::path& path, const StateDict& tensors, const Metadata& metadata) {
  const auto layout = detail::make_layout(tensors, metadata);
  remove_leftovers(path.parent_path());
  TemporaryFile file(path);
  file.write(layout.head.data(), layout.head.size());
  for (const at::Tensor* tensor : layout.order) {
    // One tensor at a time: at most one is held twice, and only if it is strided or elsewhere.
    const auto dense = tensor->detach().cpu().resolve_conj().resolve_neg().contiguous();
    file.write(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
  }
  file.commit();
}

}  // namespace torchlore
