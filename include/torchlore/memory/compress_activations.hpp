#pragma once

#include <c10/core/ScalarType.h>

#include <memory>

#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/memory/activation_copies.hpp"

namespace torchlore {

namespace memory {
class SavedCopies;
}

/// Options of `CompressActivations`.
struct CompressOptions {
  /// Tensors of fewer bytes are kept as they are. [bytes], 0 or more.
  int64_t min_bytes = 1024;
};

/// Keeps the activations that autograd saves in fewer bits while in scope. The forward pass is
/// untouched; only the gradients are computed from rounded activations.
///
/// ```cpp
/// {
///   torchlore::CompressActivations compress(at::kBFloat16);
///   loss = model->forward(x).mean();
/// }
/// loss.backward();
/// ```
/// | dtype | bytes of float32 | each value is rounded to |
/// |---|---|---|
/// | at::kBFloat16 | 1/2 | 8 significant bits; the range of float32 |
/// | at::kHalf | 1/2 | 11 significant bits; values beyond 65504 become inf, tiny ones 0 |
/// | at::kChar (int8) | 1/4 and 4 bytes a row | 1/127 of the largest absolute value of its row |
///
/// A row is the innermost dimension in memory (the features of a token, the width of an image). A
/// row of int8 that holds inf or NaN comes back as NaN, so that a loss scaler still sees it.
/// docs/memory.md has the gradient error of each choice.
///
/// Floating-point tensors wider than the dtype are compressed, each once, however many ops save
/// it. Parameters stay as they are, and so does what is alive outside autograd when the scope ends:
/// the batch, buffers, the loss.
/// @note Backward of an op sees its activations in full precision again, one op at a time. Inside
///       an `OffloadActivations` scope the compressed bytes are what is offloaded.
/// @note The rules of `SavedTensorScope` hold. O(values saved); host syncs: 0.
class [[nodiscard]] CompressActivations {
 public:
  /// Enters the scope.
  /// @throws c10::ValueError for another dtype or negative min_bytes; as SavedTensorScope.
  explicit CompressActivations(c10::ScalarType dtype = c10::ScalarType::BFloat16,
                               CompressOptions options = {});
  ~CompressActivations();

  CompressActivations(const CompressActivations&) = delete;
  CompressActivations(CompressActivations&&) = delete;
  CompressActivations& operator=(const CompressActivations&) = delete;
  CompressActivations& operator=(CompressActivations&&) = delete;

  /// What was done so far.
  ActivationCopies stats() const;

 private:
  std::shared_ptr<memory::SavedCopies> copies_;
  SavedTensorScope scope_;
};

}  // namespace torchlore
