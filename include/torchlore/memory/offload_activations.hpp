#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/memory/activation_copies.hpp"

namespace torchlore {

namespace memory {
class SavedCopies;
}

/// Options of `OffloadActivations`.
struct OffloadOptions {
  /// Moves activations to a file in this folder, from the host too. Without it they go from the
  /// accelerator to the host, and those of the host stay.
  std::optional<std::filesystem::path> folder = std::nullopt;
  /// Tensors of fewer bytes are kept where they are. [bytes], 0 or more.
  int64_t min_bytes = 4096;
  /// Host memory is page-locked, so that copies run beside the computation.
  bool pin_memory = true;
};

/// Moves the activations that autograd saves out of the way while in scope, and brings them back,
/// bit for bit, when backward needs them.
///
/// ```cpp
/// {
///   torchlore::OffloadActivations offload;   // or ({.folder = "/scratch"})
///   loss = model->forward(x).mean();
/// }
/// loss.backward();
/// ```
/// Each tensor moves once, however many ops save it. Parameters stay where they are, and so does
/// what is alive outside autograd when the scope ends: the batch, buffers, the loss.
///
/// A file has no name in the folder from the moment it is made, so it is gone when the last graph
/// of the scope is, and after a crash too. It goes through the system's page cache.
/// @note The rules of `SavedTensorScope` hold. Host syncs: 0 to the host with pinned memory, 1 per
///       tensor to a file.
class [[nodiscard]] OffloadActivations {
 public:
  /// Enters the scope.
  /// @throws c10::ValueError for negative min_bytes, or a folder that is none or that cannot be
  ///         written; as SavedTensorScope.
  explicit OffloadActivations(const OffloadOptions& options = {});
  ~OffloadActivations();

  OffloadActivations(const OffloadActivations&) = delete;
  OffloadActivations(OffloadActivations&&) = delete;
  OffloadActivations& operator=(const OffloadActivations&) = delete;
  OffloadActivations& operator=(OffloadActivations&&) = delete;

  /// What was done so far; `encoded_bytes` counts what is left where it was, so it is 0.
  ActivationCopies stats() const;

 private:
  std::shared_ptr<memory::SavedCopies> copies_;
  SavedTensorScope scope_;
};

}  // namespace torchlore
