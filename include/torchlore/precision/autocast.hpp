#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <utility>

namespace torchlore {

/// Options of `Autocast`.
struct AutocastOptions {
  /// false switches autocast off inside the scope, e.g. for one layer that needs float32.
  bool enabled = true;
  /// Keeps the cast copy of each float32 parameter until the outermost scope ends, so that a weight
  /// used twice is cast once. Switch it off when parameters change inside the scope.
  bool cache = true;
};

/// Runs the forward in lower precision while in scope: what `torch.autocast` is in Python.
///
/// Inside the scope LibTorch casts the inputs of each op by its own lists: matrix products and
/// convolutions run in `dtype`, sensitive ops (losses, some norms, fft) in float32, and ops with
/// several inputs in the widest of theirs. Parameters stay float32, and float64 tensors are never
/// touched. Put the forward and the loss inside, backward outside: it repeats the forward's dtypes
/// by itself.
///
/// ```cpp
/// at::Tensor loss;
/// {
///   torchlore::Autocast amp(device);             // bfloat16 on CPU, float16 on CUDA
///   loss = criterion(model->forward(x), y);
/// }
/// loss.backward();
/// ```
/// A scope belongs to the thread that made it, and other threads do not see it. Scopes nest; each
/// restores what it found, also when an exception passes. The outermost one empties the cast cache.
/// @note Scopes end on their own thread, innermost first. A destructor cannot throw, so a violation
///       is a warning: a scope that outlives the one around it ends with that one, and a scope
///       destroyed on another thread leaves both threads' autocast as it is.
/// @note Entering or leaving costs well below a microsecond; host syncs: 0.
class [[nodiscard]] Autocast {
 public:
  /// Enters the scope.
  /// @param device the device whose ops are cast; its index does not matter. `at::kCPU` works too.
  /// @param dtype  bfloat16 or float16; by default the device's own (LibTorch's
  ///               `get_autocast_dtype`: bfloat16 on CPU, float16 on CUDA).
  /// @param options see AutocastOptions.
  /// @throws c10::ValueError if the device has no autocast, or cannot cast to `dtype`.
  explicit Autocast(c10::Device device, std::optional<c10::ScalarType> dtype = std::nullopt,
                    AutocastOptions options = {});
  ~Autocast();

  Autocast(const Autocast&) = delete;
  Autocast(Autocast&&) = delete;
  Autocast& operator=(const Autocast&) = delete;
  Autocast& operator=(Autocast&&) = delete;

 private:
  void restore() const;

  c10::DeviceType device_;
  c10::ScalarType previous_dtype_;
  bool previous_enabled_;
  bool previous_cache_;
  uint64_t serial_;
};

/// Calls `f()` inside an `Autocast` scope and returns what it returns.
/// ```cpp
/// auto loss = torchlore::autocast(device, at::kBFloat16, [&] { return criterion(model(x), y); });
/// ```
/// @throws as the constructor of `Autocast`, and what `f` throws.
template <typename F>
decltype(auto) autocast(c10::Device device, std::optional<c10::ScalarType> dtype, F&& f) {
  const Autocast scope(device, dtype);
  return std::forward<F>(f)();
}

}  // namespace torchlore
