#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/DimVector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "block_state.hpp"
#include "kept_ops.hpp"
#include "torchlore/core/autocast_state.hpp"
#include "torchlore/core/rng.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/memory/checkpoint.hpp"

namespace torchlore::memory {

/// What the forward pass saved at one place, without the tensor: the recomputation must save the
/// like there.
struct SavedLook {
  explicit SavedLook(const at::Tensor& tensor, bool with_checksum);
  std::string text() const;

  c10::DimVector sizes;
  at::ScalarType dtype;
  c10::Device device;
  bool requires_grad;
  uint32_t version;
  uint64_t checksum;
};

/// One input of the block, saved as autograd would save it.
struct SavedInput {
  explicit SavedInput(const CheckpointScope::Input& input);
  bool changed() const { return packed != nullptr && counter.current_version() != version; }
  at::Tensor unpack() const;

  std::unique_ptr<PackedTensor> packed;  // nullptr: `tensor` itself
  at::Tensor tensor;                     // undefined, or not tracked by autograd
  c10::VariableVersion counter;          // shared with the input: goes on when it is changed
  uint32_t version = 0;
  int64_t argument;
  bool requires_grad = false;
  bool leaf = false;
};

/// The tensors of one recomputation that backward has yet to take, by slot.
using Recomputed = std::vector<at::Tensor>;

/// One checkpointed call: what its forward pass saved, and how to get it again. It lives as long as
/// any of the graph's nodes that refer to it.
class CheckpointFrame : public std::enable_shared_from_this<CheckpointFrame> {
 public:
  CheckpointFrame(const CheckpointOptions& options, CheckpointScope::Replay replay,
                  const std::vector<CheckpointScope::Input>& inputs,
                  std::vector<std::shared_ptr<torch::nn::Module>> modules);

  /// The forward pass saves a tensor: returns its slot.
  size_t add(const at::Tensor& tensor);
  /// For the forward pass: the ops whose results are kept. Null: none.
  KeptOps* kept() { return kept_ ? &*kept_ : nullptr; }
  /// The forward pass is through, and the scope around it entered again.
  void finish(const std::vector<at::Tensor>& outputs);
  /// Backward asks for a slot's tensor.
  at::Tensor unpack(size_t slot);
  /// The graph has freed a slot.
  void drop(size_t slot);

 private:
  class Recorder;
  struct OfTask {
    int task;
    std::weak_ptr<Recomputed> tensors;
  };

  std::shared_ptr<Recomputed> of_task(int task);
  std::shared_ptr<Recomputed> recompute(std::optional<size_t> only);
  void replay(const std::shared_ptr<Recorder>& recorder);
  std::vector<at::Tensor> unpack_inputs() const;

  const CheckpointOptions options_;
  const CheckpointScope::Replay replay_;
  BlockState state_;
  std::optional<KeptOps> kept_;
  std::vector<SavedInput> inputs_;
  std::optional<RngState> rng_;  // nothing: the block draws no random numbers
  const AutocastState autocast_ = AutocastState::capture();
  const OpModeState modes_ = OpModeState::capture();

  // What frees the graph of an earlier pass may run anywhere, also inside the recomputation.
  std::recursive_mutex mutex_;
  bool finished_ = false;
  std::vector<SavedLook> slots_;
  std::vector<bool> alive_;
  std::vector<OfTask> running_;
};

}  // namespace torchlore::memory
