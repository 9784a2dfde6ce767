#pragma once

namespace torchlore {

/// Lets float32 matrix products and convolutions on CUDA use TensorFloat32 (10 bits of mantissa
/// instead of 23) while it lives, or forbids it; restores what it found.
///
/// ```cpp
/// torchlore::TensorFloat32 faster;              // or faster(false): full float32
/// if (!faster.active()) std::cout << faster.reason() << '\n';
/// ```
/// **Process-wide**: LibTorch has one setting for all threads (`allow_tf32` of cuBLAS and cuDNN).
/// Guards end in reverse order; do not open them on several threads at once.
///
/// A machine without CUDA has nothing to set: the guard does nothing, and says why. GPUs before
/// Ampere ignore the setting.
/// @note Host syncs: 0.
class [[nodiscard]] TensorFloat32 {
 public:
  /// @throws c10::Error if the program has used LibTorch's newer per-op settings, which cannot be
  ///         read as one.
  explicit TensorFloat32(bool enabled = true);
  ~TensorFloat32();
  TensorFloat32(const TensorFloat32&) = delete;
  TensorFloat32(TensorFloat32&&) = delete;
  TensorFloat32& operator=(const TensorFloat32&) = delete;
  TensorFloat32& operator=(TensorFloat32&&) = delete;

  /// Whether there is something that it sets.
  bool active() const { return active_; }
  /// Why not; empty if it does.
  const char* reason() const;

 private:
  bool active_;
  bool previous_cublas_ = false;
  bool previous_cudnn_ = false;
};

}  // namespace torchlore
