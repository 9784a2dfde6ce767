#include "saved_copies.hpp"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace torchlore::memory {
namespace {

/// Whether the model owns the tensor: a parameter, or a view of one such as `w.t()`.
bool is_parameter(const at::Tensor& tensor) {
  const auto& base = tensor.is_view() ? tensor._base() : tensor;
  return base.is_leaf() && base.requires_grad();
}

bool has_plain_storage(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_quantized() &&
         !tensor.is_nested() && !tensor.unsafeGetTensorImpl()->is_python_dispatch() &&
         !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor();
}

/// The length of the dimension whose elements are neighbours in memory.
int64_t row_length(const at::Tensor& tensor) {
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    if (tensor.stride(d) == 1 && tensor.size(d) > 1) return tensor.size(d);
  }
  return tensor.numel();
}

/// How to see a tensor in a one-dimensional tensor of its values.
struct Layout {
  at::DimVector sizes;
  at::DimVector strides;
  int64_t offset;
};

/// A tensor's values in one dimension, and where it finds itself in them.
struct Flat {
  at::Tensor values;
  Layout layout;
};

/// Its own memory where it has no gaps; all of its storage where elements repeat (`expand`); a copy
/// without the gaps otherwise.
Flat flat_view(const at::Tensor& tensor) {
  const at::DimVector sizes(tensor.sizes());
  const at::DimVector strides(tensor.strides());
  if (tensor.is_non_overlapping_and_dense()) {
    return {at::as_strided(tensor, {tensor.numel()}, {1}), {sizes, strides, 0}};
  }
  const auto item = static_cast<size_t>(tensor.itemsize());
  const auto length = static_cast<int64_t>(tensor.storage().nbytes() / item);
  if (tensor.numel() > length) {
    return {at::as_strided(tensor, {length}, {1}, 0), {sizes, strides, tensor.storage_offset()}};
  }
  const auto copy = tensor.clone(at::MemoryFormat::Preserve);
  return {at::as_strided(copy, {copy.numel()}, {1}), {sizes, at::DimVector(copy.strides()), 0}};
}

at::Tensor over_storage(c10::Storage storage, int64_t offset, int64_t length,
                        const at::TensorOptions& options) {
  return at::empty({0}, options).set_(std::move(storage), offset, {length}, {1});
}

class PackedCopy final : public PackedTensor {
 public:
  PackedCopy(std::shared_ptr<SavedCopy> copy, Layout layout)
      : copy_(std::move(copy)), layout_(std::move(layout)) {}
  at::Tensor unpack() override {
    const auto values = copy_->values();
    return at::as_strided(values, layout_.sizes, layout_.strides,
                          values.storage_offset() + layout_.offset);
  }

 private:
  std::shared_ptr<SavedCopy> copy_;
  Layout layout_;
};

}  // namespace

SavedCopy::SavedCopy(const at::Tensor& source, const at::Tensor& values, Codec& codec)
    : storage_(values.storage().getWeakStorageImpl()),
      version_(torch::autograd::impl::version_counter(source)),
      saved_version_(version_.current_version()),
      options_(values.options()),
      offset_(values.storage_offset()),
      length_(values.numel()),
      encoded_(codec.encode(values, row_length(source))),
      decoded_(c10::Storage().getWeakStorageImpl()) {}

bool SavedCopy::holds(const at::Tensor& source, const at::Tensor& values) const {
  // Values that were copied to close gaps are in another storage.
  return storage_.lock().get() == values.storage().unsafeGetStorageImpl() &&
         version_.current_version() == saved_version_ && source._version() == saved_version_ &&
         options_.dtype() == values.dtype() && offset_ == values.storage_offset() &&
         length_ == values.numel();
}

void SavedCopy::settle(ActivationCopies& stats) {
  auto storage = storage_.lock();
  if (!storage || version_.current_version() != saved_version_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  stats.resident_bytes += length_ * static_cast<int64_t>(options_.dtype().itemsize());
  stats.encoded_bytes -= encoded_->bytes();
  resident_ = over_storage(c10::Storage(std::move(storage)), offset_, length_, options_);
  encoded_.reset();
}

at::Tensor SavedCopy::values() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (resident_.defined()) {
    TORCH_CHECK(version_.current_version() == saved_version_,
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: a tensor of ",
                length_, " elements is at version ", version_.current_version(),
                "; expected version ", saved_version_,
                " instead. Change it out of place, or after backward");
    return resident_;
  }
  // Ops that saved the same tensor and unpack it at the same time share it again.
  if (auto storage = decoded_.lock()) {
    return over_storage(c10::Storage(std::move(storage)), 0, length_, options_);
  }
  auto values = encoded_->decode();
  decoded_ = values.storage().getWeakStorageImpl();
  return values;
}

SavedCopies::SavedCopies(std::unique_ptr<Codec> codec, int64_t min_bytes)
    : codec_(std::move(codec)), min_bytes_(min_bytes) {}

std::unique_ptr<PackedTensor> SavedCopies::pack(const at::Tensor& tensor) {
  if (!has_plain_storage(tensor) || static_cast<int64_t>(tensor.nbytes()) < min_bytes_ ||
      is_parameter(tensor) || !codec_->takes(tensor)) {
    return nullptr;
  }
  const auto detached = tensor.detach();
  auto flat = flat_view(detached);
  auto copy = copy_of(detached, flat.values);
  ++stats_.tensors;
  return std::make_unique<PackedCopy>(std::move(copy), std::move(flat.layout));
}

std::shared_ptr<SavedCopy> SavedCopies::copy_of(const at::Tensor& tensor,
                                                const at::Tensor& values) {
  auto& known = copies_[tensor.storage().unsafeGetStorageImpl()];
  for (const auto& weak : known) {
    if (auto copy = weak.lock(); copy && copy->holds(tensor, values)) return copy;
  }
  auto copy = std::make_shared<SavedCopy>(tensor, values, *codec_);
  stats_.original_bytes += static_cast<int64_t>(values.nbytes());
  stats_.encoded_bytes += copy->encoded_bytes();
  std::erase_if(known, [](const auto& weak) { return weak.expired(); });
  known.push_back(copy);
  if (copies_.size() > next_prune_) prune();
  return copy;
}

void SavedCopies::prune() {
  std::erase_if(copies_, [](const auto& entry) {
    return std::all_of(entry.second.begin(), entry.second.end(),
                       [](const auto& weak) { return weak.expired(); });
  });
  next_prune_ = 2 * copies_.size() + 256;
}

void SavedCopies::close() {
  for (const auto& [storage, copies] : copies_) {
    for (const auto& weak : copies) {
      if (const auto copy = weak.lock()) copy->settle(stats_);
    }
  }
  copies_.clear();
}

}  // namespace torchlore::memory
