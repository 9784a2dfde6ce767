#include "torchlore/core/loss.hpp"

#include <ATen/ops/scalar_tensor.h>
#include <c10/util/Exception.h>

namespace torchlore {

Count::Count(at::Tensor value) : tensor_(std::move(value)) {
  TORCH_CHECK_VALUE(tensor_.defined(), "a count must be one number, but is an undefined tensor");
  TORCH_CHECK_VALUE(tensor_.numel() == 1, "a count must be one number, but has shape ",
                    tensor_.sizes());
  tensor_ = tensor_.detach();
}

int64_t Count::value() const { return on_host() ? value_ : tensor_.item().toLong(); }

at::Tensor Count::tensor() const {
  return on_host() ? at::scalar_tensor(value_, at::kDouble) : tensor_.to(at::kDouble).reshape({});
}

}  // namespace torchlore
