#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/memory/activation_copies.hpp"

/// What `CompressActivations` and `OffloadActivations` share: which saved tensors are brought into
/// another form, each of them once however often it is saved, and resident values left alone.
namespace torchlore::memory {

/// Another form of a tensor's values.
class Encoded {
 public:
  virtual ~Encoded() = default;
  /// The values, one-dimensional and contiguous.
  virtual at::Tensor decode() = 0;
  /// The bytes it takes of the memory that is to be saved.
  virtual int64_t bytes() const = 0;
};

/// How tensors are brought into another form.
class Codec {
 public:
  virtual ~Codec() = default;
  /// Whether the tensor gains by it.
  virtual bool takes(const at::Tensor& tensor) const = 0;
  /// @param values one-dimensional and contiguous
  /// @param row    the length of the tensor's innermost dimension in memory
  virtual std::unique_ptr<Encoded> encode(const at::Tensor& values, int64_t row) = 0;
};

/// The values of one stretch of a storage, as they were when autograd saved them.
class SavedCopy {
 public:
  /// @param source the tensor that was saved
  /// @param values its values, one-dimensional and contiguous: its own memory, or a copy
  SavedCopy(const at::Tensor& source, const at::Tensor& values, Codec& codec);

  /// Whether it also holds the values of another tensor, given the same way.
  bool holds(const at::Tensor& source, const at::Tensor& values) const;
  /// Goes back to the tensor itself if something beside autograd keeps it alive.
  void settle(ActivationCopies& stats);
  /// The values, one-dimensional and contiguous.
  /// @throws c10::Error if a resident tensor was changed in place.
  at::Tensor values();
  int64_t encoded_bytes() const { return encoded_->bytes(); }

 private:
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  c10::VariableVersion version_;
  uint32_t saved_version_;
  at::TensorOptions options_;
  int64_t offset_;
  int64_t length_;
  std::unique_ptr<Encoded> encoded_;
  at::Tensor resident_;
  std::mutex mutex_;  // backward may run on several threads
  c10::weak_intrusive_ptr<c10::StorageImpl> decoded_;
};

/// Packs saved tensors through a codec.
class SavedCopies final : public SavedTensorHandler {
 public:
  /// @param min_bytes smaller tensors are left alone
  SavedCopies(std::unique_ptr<Codec> codec, int64_t min_bytes);

  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override;

  /// The scope ends: values that something beside autograd keeps alive are not held twice.
  void close();
  const ActivationCopies& stats() const { return stats_; }

 private:
  std::shared_ptr<SavedCopy> copy_of(const at::Tensor& tensor, const at::Tensor& values);
  void prune();

  std::unique_ptr<Codec> codec_;
  int64_t min_bytes_;
  ActivationCopies stats_;
  std::unordered_map<const c10::StorageImpl*, std::vector<std::weak_ptr<SavedCopy>>> copies_;
  size_t next_prune_ = 256;  // entries of freed graphs are dropped when there are more than these
};

}  // namespace torchlore::memory
