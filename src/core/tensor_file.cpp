#include "torchlore/core/tensor_file.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tensor_file_dtype.hpp"
#include "tensor_file_header.hpp"

namespace torchlore {
namespace {

std::string system_reason() { return std::strerror(errno); }

/// The bytes of a file in memory, private to this process: writing to them never reaches the file.
class Mapping {
 public:
  explicit Mapping(const std::string& file) {
    const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    TORCH_CHECK(descriptor >= 0, "cannot open '", file, "': ", system_reason());
    const std::string error = map(descriptor);
    ::close(descriptor);
    TORCH_CHECK(error.empty(), "cannot read '", file, "': ", error);
  }
  ~Mapping() {
    if (size_ > 0) ::munmap(data_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return size_; }

 private:
  std::string map(int descriptor) {
    struct stat status {};
    if (::fstat(descriptor, &status) != 0) return system_reason();
    if (S_ISDIR(status.st_mode)) return "it is a directory";
    if (!S_ISREG(status.st_mode)) return "it is not a regular file";
    const auto size = static_cast<size_t>(status.st_size);
    if (size == 0) return "";  // nothing to map; the header's check refuses it
    // NORESERVE: only pages that are written to need memory, so a file may be larger than memory.
    void* data =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor, 0);
    if (data == MAP_FAILED) return system_reason();
    data_ = data;
    size_ = size;
    return "";
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

std::vector<int64_t> torch_shape(const std::string& name, const TensorInfo& info,
                                 const std::string& file) {
  auto shape = info.shape;
  if (info.dtype == detail::kPairDtype) {
    TORCH_CHECK_NOT_IMPLEMENTED(shape.back() % 2 == 0, "tensor '", name, "' of '", file,
                                "' has an odd last dimension of dtype F4 (", shape.back(),
                                "), which LibTorch holds in pairs only");
    shape.back() /= 2;
  }
  return shape;
}

/// A bool that is neither 0 nor 1 is undefined behaviour for whoever reads it.
void check_bools(const char* data, const std::string& name, const TensorInfo& info,
                 const std::string& file) {
  const uint64_t count = info.end - info.begin;
  unsigned all = 0;
  for (uint64_t i = 0; i < count; ++i) all |= static_cast<unsigned char>(data[i]);
  TORCH_CHECK_VALUE(all <= 1, "tensor '", name, "' of '", file,
                    "' is BOOL but holds bytes other than 0 and 1");
}

}  // namespace

namespace detail {

at::Tensor view_tensor(char* data, const std::string& name, const TensorInfo& info,
                       std::shared_ptr<const void> owner, const std::string& file) {
  TORCH_CHECK_NOT_IMPLEMENTED(info.dtype != at::ScalarType::Undefined, "tensor '", name, "' of '",
                              file, "' has dtype ", info.format_dtype,
                              ", for which LibTorch has none");
  const auto shape = torch_shape(name, info, file);
  const auto options = at::TensorOptions(info.dtype);
  if (info.begin == info.end) return at::empty(shape, options);
  if (info.dtype == at::kBool) check_bools(data, name, info, file);
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(info.dtype) != 0) {
    auto copy = at::empty(shape, options);
    std::memcpy(copy.data_ptr(), data, info.end - info.begin);
    return copy;
  }
  return at::from_blob(
      data, shape, [owner = std::move(owner)](void*) {}, options);
}

}  // namespace detail

struct TensorFile::Impl {
  explicit Impl(const std::filesystem::path& path)
      : file(path.string()),
        mapping(file),
        header(detail::parse_header({mapping.data(), mapping.size()}, file)) {}

  std::string file;
  Mapping mapping;
  detail::Header header;
};

TensorFile::TensorFile(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

TensorFile TensorFile::open(const std::filesystem::path& path) {
  return TensorFile(std::make_shared<const Impl>(path));
}

const std::map<std::string, TensorInfo>& TensorFile::infos() const { return impl_->header.infos; }

const Metadata& TensorFile::metadata() const { return impl_->header.metadata; }

bool TensorFile::contains(const std::string& name) const { return infos().contains(name); }

at::Tensor TensorFile::tensor(const std::string& name) const {
  const auto found = infos().find(name);
  TORCH_CHECK_VALUE(found != infos().end(), "'", impl_->file, "' has no tensor '", name,
                    "'; infos() lists the ", infos().size(), " it has");
  char* data = impl_->mapping.data() + impl_->header.data_offset + found->second.begin;
  return detail::view_tensor(data, name, found->second, impl_, impl_->file);
}

StateDict TensorFile::tensors() const {
  StateDict result;
  for (const auto& [name, info] : infos()) result.emplace(name, tensor(name));
  return result;
}

}  // namespace torchlore
