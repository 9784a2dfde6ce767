#include "torchlore/memory/offload_activations.hpp"

#include <ATen/ops/empty.h>

#include "activation_file.hpp"
#include "saved_copies.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

/// Values of an accelerator in the host's memory. Both copies are queued on the device's stream,
/// which keeps them in order with the ops before and after.
class OnHost final : public memory::Encoded {
 public:
  OnHost(const at::Tensor& values, bool pin)
      : device_(values.device()),
        pinned_(pin),
        values_(at::empty(values.sizes(), values.options().device(at::kCPU).pinned_memory(pin))) {
    values_.copy_(values, /*non_blocking=*/pinned_);
  }
  at::Tensor decode() override { return values_.to(device_, pinned_); }
  int64_t bytes() const override { return 0; }

 private:
  at::Device device_;
  bool pinned_;
  at::Tensor values_;
};

class HostCodec final : public memory::Codec {
 public:
  explicit HostCodec(bool pin) : pin_(pin) {}
  bool takes(const at::Tensor& tensor) const override { return !tensor.is_cpu(); }
  std::unique_ptr<memory::Encoded> encode(const at::Tensor& values, int64_t) override {
    return std::make_unique<OnHost>(values, pin_);
  }

 private:
  bool pin_;
};

class InFile final : public memory::Encoded {
 public:
  InFile(const at::Tensor& values, std::shared_ptr<memory::ActivationFile> file)
      : options_(values.options()), length_(values.numel()), file_(std::move(file)) {
    const auto host = values.cpu();
    offset_ = file_->append(host.const_data_ptr(), static_cast<int64_t>(host.nbytes()));
  }
  at::Tensor decode() override {
    auto host = at::empty({length_}, options_.device(at::kCPU));
    file_->read(offset_, host.mutable_data_ptr(), static_cast<int64_t>(host.nbytes()));
    return host.to(options_.device());
  }
  int64_t bytes() const override { return 0; }

 private:
  at::TensorOptions options_;
  int64_t length_;
  int64_t offset_;
  std::shared_ptr<memory::ActivationFile> file_;
};

class FileCodec final : public memory::Codec {
 public:
  explicit FileCodec(const std::filesystem::path& folder)
      : file_(std::make_shared<memory::ActivationFile>(folder)) {}
  bool takes(const at::Tensor&) const override { return true; }
  std::unique_ptr<memory::Encoded> encode(const at::Tensor& values, int64_t) override {
    return std::make_unique<InFile>(values, file_);
  }

 private:
  std::shared_ptr<memory::ActivationFile> file_;
};

std::shared_ptr<memory::SavedCopies> make_copies(const OffloadOptions& options) {
  check_not_negative("OffloadActivations' min_bytes", static_cast<double>(options.min_bytes));
  std::unique_ptr<memory::Codec> codec;
  if (options.folder) {
    codec = std::make_unique<FileCodec>(*options.folder);
  } else {
    codec = std::make_unique<HostCodec>(options.pin_memory);
  }
  return std::make_shared<memory::SavedCopies>(std::move(codec), options.min_bytes);
}

}  // namespace

OffloadActivations::OffloadActivations(const OffloadOptions& options)
    : copies_(make_copies(options)), scope_(copies_) {}

OffloadActivations::~OffloadActivations() { copies_->close(); }

ActivationCopies OffloadActivations::stats() const { return copies_->stats(); }

}  // namespace torchlore
