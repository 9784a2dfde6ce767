#pragma once

#include <cstdint>
#include <filesystem>

namespace torchlore::memory {

/// A file without a name, for values that come back within this process.
class ActivationFile {
 public:
  /// @throws c10::ValueError if no file can be made in the folder.
  explicit ActivationFile(const std::filesystem::path& folder);
  ~ActivationFile();
  ActivationFile(const ActivationFile&) = delete;
  ActivationFile(ActivationFile&&) = delete;
  ActivationFile& operator=(const ActivationFile&) = delete;
  ActivationFile& operator=(ActivationFile&&) = delete;

  /// Writes at the end; returns where. @throws c10::Error if the disk is full or fails.
  int64_t append(const void* bytes, int64_t count);
  /// Reads what was written there; any thread. @throws c10::Error if the disk fails.
  void read(int64_t offset, void* bytes, int64_t count) const;

 private:
  std::filesystem::path folder_;
  int descriptor_;
  int64_t end_ = 0;
};

}  // namespace torchlore::memory
