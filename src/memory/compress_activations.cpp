#include "torchlore/memory/compress_activations.hpp"

#include <c10/util/Exception.h>

#include "row_int8.hpp"
#include "saved_copies.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

/// Values in another floating-point type. The scope around may take them further.
class Cast final : public memory::Encoded {
 public:
  Cast(const at::Tensor& values, at::ScalarType dtype)
      : original_(values.scalar_type()), bytes_(values.numel() * 2) {
    packed_ = SavedTensorScope::save(values.to(dtype));
  }
  at::Tensor decode() override { return packed_->unpack().to(original_); }
  int64_t bytes() const override { return bytes_; }

 private:
  at::ScalarType original_;
  int64_t bytes_;
  std::unique_ptr<PackedTensor> packed_;
};

class CastCodec final : public memory::Codec {
 public:
  explicit CastCodec(at::ScalarType dtype) : dtype_(dtype) {}
  bool takes(const at::Tensor& tensor) const override {
    return tensor.is_floating_point() && tensor.itemsize() > 2;
  }
  std::unique_ptr<memory::Encoded> encode(const at::Tensor& values, int64_t) override {
    return std::make_unique<Cast>(values, dtype_);
  }

 private:
  at::ScalarType dtype_;
};

/// Values as int8 with one scale per row.
class Rows final : public memory::Encoded {
 public:
  Rows(const at::Tensor& values, int64_t row)
      : dtype_(values.scalar_type()), length_(values.numel()) {
    const auto rows = memory::quantize_rows(values, row);
    bytes_ = static_cast<int64_t>(rows.values.nbytes() + rows.scales.nbytes());
    values_ = SavedTensorScope::save(rows.values);
    scales_ = SavedTensorScope::save(rows.scales);
  }
  at::Tensor decode() override {
    return memory::dequantize_rows({values_->unpack(), scales_->unpack()}, length_, dtype_);
  }
  int64_t bytes() const override { return bytes_; }

 private:
  at::ScalarType dtype_;
  int64_t length_;
  int64_t bytes_;
  std::unique_ptr<PackedTensor> values_;
  std::unique_ptr<PackedTensor> scales_;
};

class RowCodec final : public memory::Codec {
 public:
  bool takes(const at::Tensor& tensor) const override { return tensor.is_floating_point(); }
  std::unique_ptr<memory::Encoded> encode(const at::Tensor& values, int64_t row) override {
    return std::make_unique<Rows>(values, row);
  }
};

std::shared_ptr<memory::SavedCopies> make_copies(at::ScalarType dtype,
                                                 const CompressOptions& options) {
  check_not_negative("CompressActivations' min_bytes", static_cast<double>(options.min_bytes));
  TORCH_CHECK_VALUE(dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kChar,
                    "CompressActivations keeps activations as BFloat16, Half or Char (int8 per "
                    "row), but dtype is ",
                    dtype);
  std::unique_ptr<memory::Codec> codec;
  if (dtype == at::kChar) {
    codec = std::make_unique<RowCodec>();
  } else {
    codec = std::make_unique<CastCodec>(dtype);
  }
  return std::make_shared<memory::SavedCopies>(std::move(codec), options.min_bytes);
}

}  // namespace

CompressActivations::CompressActivations(c10::ScalarType dtype, CompressOptions options)
    : copies_(make_copies(dtype, options)), scope_(copies_) {}

CompressActivations::~CompressActivations() { copies_->close(); }

ActivationCopies CompressActivations::stats() const { return copies_->stats(); }

}  // namespace torchlore
