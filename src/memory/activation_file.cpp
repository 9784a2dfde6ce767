#include "activation_file.hpp"

#include <c10/util/Exception.h>
#include <stdlib.h>  // mkstemp
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace torchlore::memory {

ActivationFile::ActivationFile(const std::filesystem::path& folder) : folder_(folder) {
  std::string name = (folder / "torchlore-activations-XXXXXX").string();
  descriptor_ = mkstemp(name.data());
  TORCH_CHECK_VALUE(descriptor_ >= 0, "OffloadActivations cannot make a file in ", folder, ": ",
                    std::strerror(errno), "; name a folder that exists and can be written");
  unlink(name.c_str());
}

ActivationFile::~ActivationFile() { close(descriptor_); }

int64_t ActivationFile::append(const void* bytes, int64_t count) {
  const auto* from = static_cast<const char*>(bytes);
  for (int64_t done = 0; done < count;) {
    const auto wrote =
        pwrite(descriptor_, from + done, static_cast<size_t>(count - done), end_ + done);
    if (wrote < 0 && errno == EINTR) continue;
    TORCH_CHECK(wrote > 0, "OffloadActivations could not write ", count, " bytes to its file in ",
                folder_, ", which holds ", end_, " already: ", std::strerror(errno));
    done += wrote;
  }
  const int64_t offset = end_;
  end_ += count;
  return offset;
}

void ActivationFile::read(int64_t offset, void* bytes, int64_t count) const {
  auto* to = static_cast<char*>(bytes);
  for (int64_t done = 0; done < count;) {
    const auto got =
        pread(descriptor_, to + done, static_cast<size_t>(count - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    TORCH_CHECK(got > 0, "OffloadActivations could not read ", count, " bytes from its file in ",
                folder_, ": ", got == 0 ? "the file is too short" : std::strerror(errno));
    done += got;
  }
}

}  // namespace torchlore::memory
