#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/core/impl/SizesAndStrides.h>

/// The parts of ActivationBudget. docs/memory.md says how they work together.
namespace torchlore::budget {

/// Whether a tensor is nothing but a view of bytes in a storage. Sparse, quantized, nested, opaque,
/// inference and functorch's tensors are more; they are kept as they are.
bool is_plain(const at::Tensor& tensor);

/// How a plain tensor looks at its storage: all that is needed to make it again from the bytes.
struct TensorView {
  TensorView() = default;
  explicit TensorView(const at::Tensor& tensor);

  /// The tensor over `storage`, without gradients.
  at::Tensor over(c10::Storage storage) const;

  c10::DispatchKeySet keys;
  c10::impl::SizesAndStrides geometry;
  int64_t offset = 0;
  caffe2::TypeMeta dtype;
  bool wrapped_number = false;  // a C++ number, which takes no part in type promotion
};

/// New bytes.
c10::Storage new_storage(size_t nbytes, c10::Device device);

/// A copy of the bytes, on the same device.
c10::Storage clone_storage(const c10::Storage& storage);

/// Whether two tensors of the same view have the same bytes.
bool same_bytes(const at::Tensor& a, const at::Tensor& b);

/// About how many bytes a tensor of any kind takes.
int64_t bytes_of(const at::Tensor& tensor);

}  // namespace torchlore::budget
