#include "torchlore/precision/tensor_float32.hpp"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

namespace torchlore {

TensorFloat32::TensorFloat32(bool enabled) : active_(at::globalContext().hasCUDA()) {
  if (!active_) return;
  auto& context = at::globalContext();
  previous_cublas_ = context.allowTF32CuBLAS();
  previous_cudnn_ = context.allowTF32CuDNN();
  context.setAllowTF32CuBLAS(enabled);
  context.setAllowTF32CuDNN(enabled);
}

TensorFloat32::~TensorFloat32() {
  if (!active_) return;
  try {
    at::globalContext().setAllowTF32CuBLAS(previous_cublas_);
    at::globalContext().setAllowTF32CuDNN(previous_cudnn_);
  } catch (const std::exception& error) {
    TORCH_WARN("the TensorFloat32 setting could not be restored: ", error.what());
  }
}

const char* TensorFloat32::reason() const {
  return active_ ? "" : "this machine, or this build of LibTorch, has no CUDA device";
}

}  // namespace torchlore
