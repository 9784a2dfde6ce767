#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

namespace torch::nn {
class Module;
}

namespace torchlore::memory {

/// The parameters and buffers of a checkpointed block: the recomputation must find the parameters as
/// the forward pass did, and leave no trace in the buffers.
class BlockState {
 public:
  /// Before the forward pass. `buffers` come on top of the modules' own, which
  /// are left out if `module_buffers` is false.
  BlockState(std::vector<std::shared_ptr<torch::nn::Module>> modules,
             std::vector<at::Tensor> buffers, bool module_buffers);
  /// After it. @throws c10::NotImplementedError if it changed a buffer that is too large to be kept.
  void forward_done();
  /// @throws c10::Error naming a parameter that is no longer as it was in the forward pass.
  void check_parameters() const;

  /// While it lives, the buffers are as they were before the forward pass.
  class Rewind;

 private:
  /// What tells that a parameter is still the same.
  struct Look {
    explicit Look(const at::Tensor& parameter);
    const c10::TensorImpl* tensor;
    const void* data;
    uint32_t version;
    bool requires_grad;
  };
  /// A buffer and what it held before the forward pass; undefined if that was not kept.
  struct Buffer {
    at::Tensor tensor;
    at::Tensor before;
    uint32_t version;
  };

  std::vector<std::shared_ptr<torch::nn::Module>> modules_;
  std::vector<Look> parameters_;
  std::vector<Buffer> buffers_;
};

class BlockState::Rewind {
 public:
  explicit Rewind(const BlockState& state);
  ~Rewind();
  Rewind(const Rewind&) = delete;
  Rewind(Rewind&&) = delete;
  Rewind& operator=(const Rewind&) = delete;
  Rewind& operator=(Rewind&&) = delete;

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> now_;  // a buffer, and what it goes back to
};

}  // namespace torchlore::memory
