#pragma once

#include <cstdint>

/// The loops of the fused passes over gradients and averages, on raw memory. gradient_kernels.inc is compiled once per
/// instruction set; `gradient_kernels()` picks the best set this machine has.
namespace torchlore::kernels {

/// Element type of a run of memory.
enum class Element : uint8_t { f16, bf16, f32, f64 };

struct GradientKernels {
  /// Sum of squares, accumulated in float64. inf or NaN if any element is.
  double (*sum_squares)(const void* data, int64_t count, Element element);
  /// Sum of absolute values, accumulated in float64.
  double (*sum_abs)(const void* data, int64_t count, Element element);
  /// Largest absolute value; NaN if any element is NaN.
  double (*max_abs)(const void* data, int64_t count, Element element);
  /// Divides in place: float64 in float64, all others in float32 with one rounding.
  void (*divide)(void* data, int64_t count, Element element, double divisor);
  /// average += weight × (value - average); `average` is float64 for float64, else float32. The last
  /// place may depend on the instruction set.
  void (*lerp)(void* average, const void* value, int64_t count, Element element, double weight);
  const char* name;
};

/// The best set for this machine; TORCHLORE_KERNELS=portable|avx2|avx512 in the environment asks for
/// another (read once; ignored where the machine lacks it).
const GradientKernels& gradient_kernels();

/// A named set, or nullptr where this build or machine lacks it.
const GradientKernels* gradient_kernels(const char* name);

}  // namespace torchlore::kernels
