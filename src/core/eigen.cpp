#include "torchlore/core/eigen.hpp"

#include <c10/util/Exception.h>

namespace torchlore::detail {

EigenLayout eigen_layout(const at::Tensor& tensor, at::ScalarType dtype, int64_t max_dim,
                         bool writes) {
  TORCH_CHECK_VALUE(tensor.defined(), "an undefined tensor has no matrix");
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, "the tensor holds ", tensor.scalar_type(),
                   ", but a matrix of ", dtype, " was asked for; convert it with .to()");
  TORCH_CHECK_TYPE(tensor.is_cpu() && tensor.layout() == at::kStrided,
                   "Eigen needs a dense tensor on the CPU, but got ", tensor.layout(), " on ",
                   tensor.device());
  TORCH_CHECK_VALUE(tensor.dim() <= max_dim, "expected at most ", max_dim,
                    " dimensions, but the shape is ", tensor.sizes());
  TORCH_CHECK_VALUE(!tensor.is_neg(),
                    "the tensor's negation is not carried out yet; pass "
                    "tensor.resolve_neg()");
  EigenLayout layout;
  layout.data = writes ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  if (tensor.dim() > 0) layout.rows = tensor.size(0), layout.row_stride = tensor.stride(0);
  if (tensor.dim() > 1) layout.columns = tensor.size(1), layout.column_stride = tensor.stride(1);
  const bool shared = (layout.rows > 1 && layout.row_stride == 0) ||
                      (layout.columns > 1 && layout.column_stride == 0);
  TORCH_CHECK_VALUE(!writes || !shared,
                    "elements of the tensor share memory (it was expanded), so it cannot be "
                    "written; pass a clone, or map it as const");
  return layout;
}

}  // namespace torchlore::detail
