#include "tensor_view.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <c10/core/TensorImpl.h>

namespace torchlore::budget {
namespace {

/// Tensors with one of these are more than bytes and strides.
bool is_special(c10::DispatchKeySet keys) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet special(
      {DispatchKey::Sparse, DispatchKey::SparseCsr, DispatchKey::Quantized,
       DispatchKey::NestedTensor, DispatchKey::MkldnnCPU, DispatchKey::Python,
       DispatchKey::FuncTorchGradWrapper, DispatchKey::FuncTorchBatched,
       DispatchKey::FuncTorchBatchedDecomposition, DispatchKey::Functionalize,
       DispatchKey::BatchedNestedTensor, DispatchKey::ZeroTensor});
  return keys.has_any(special);
}

/// The bytes of a storage as a tensor.
at::Tensor as_bytes(const c10::Storage& storage) {
  auto bytes = at::empty({0}, at::TensorOptions(storage.device()).dtype(at::kByte));
  auto* impl = bytes.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(storage);
  impl->set_sizes_contiguous({static_cast<int64_t>(storage.nbytes())});
  return bytes;
}

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  return !is_special(impl->key_set()) && impl->has_storage() && !impl->is_inference() &&
         !impl->device().is_meta();
}

TensorView::TensorView(const at::Tensor& tensor) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  keys = impl->key_set();
  geometry.set_sizes(impl->sizes());
  geometry.set_strides(impl->strides());
  offset = impl->storage_offset();
  dtype = impl->dtype();
  wrapped_number = impl->is_wrapped_number();
}

at::Tensor TensorView::over(c10::Storage storage) const {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, dtype);
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(geometry.sizes_arrayref(), geometry.strides_arrayref(), offset);
  if (wrapped_number) impl->set_wrapped_number(true);
  return tensor;
}

c10::Storage new_storage(size_t nbytes, c10::Device device) {
  return at::empty({static_cast<int64_t>(nbytes)}, at::TensorOptions(device).dtype(at::kByte))
      .storage();
}

c10::Storage clone_storage(const c10::Storage& storage) {
  auto copy = new_storage(storage.nbytes(), storage.device());
  as_bytes(copy).copy_(as_bytes(storage));
  return copy;
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  // As bytes: a NaN equals itself, and 0 is not -0.
  const auto bytes = [](const at::Tensor& t) {
    const auto dense = t.resolve_conj().resolve_neg().contiguous();
    return as_bytes(dense.storage())
        .slice(0, dense.storage_offset() * dense.element_size())
        .slice(0, 0, static_cast<int64_t>(dense.nbytes()));
  };
  return at::equal(bytes(a), bytes(b));
}

int64_t bytes_of(const at::Tensor& tensor) {
  const auto size = static_cast<int64_t>(tensor.element_size());
  if (tensor.layout() == at::kSparse) {
    return tensor._nnz() * (size + 8 * tensor.sparse_dim());
  }
  return tensor.numel() * size;
}

}  // namespace torchlore::budget
