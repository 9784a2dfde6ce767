#pragma once

#include <cstdint>
#include <filesystem>
#include <map>

namespace torchlore::detail {

/// The run files of a folder by number.
std::map<int64_t, std::filesystem::path> run_files(const std::filesystem::path& folder);

/// `step-00000012.safetensors` in the folder.
std::filesystem::path run_file(const std::filesystem::path& folder, int64_t number);

/// Removes all but the newest `keep` run files; one that cannot be removed is only warned about.
void remove_old_run_files(const std::filesystem::path& folder, int64_t keep);

/// Holds a folder for this process until it is destroyed or the process ends, however it ends.
class FolderLock {
 public:
  /// Makes the folder if needed.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace torchlore::detail
