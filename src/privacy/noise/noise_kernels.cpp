#include "noise_kernels.hpp"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace torchlore::kernels {

namespace portable {
extern const NoiseKernels kNoiseKernels;
}
#if defined(TORCHLORE_X86_KERNELS)
namespace avx2 {
extern const NoiseKernels kNoiseKernels;
}
namespace avx512 {
extern const NoiseKernels kNoiseKernels;
}
#endif

namespace {

const NoiseKernels& best() {
#if defined(TORCHLORE_X86_KERNELS)
  for (const char* name : {"avx512", "avx2"}) {
    if (const auto* found = noise_kernels(name)) return *found;
  }
#endif
  return portable::kNoiseKernels;
}

const NoiseKernels& chosen() {
  const char* asked = std::getenv("TORCHLORE_KERNELS");
  const auto* found = asked != nullptr ? noise_kernels(asked) : nullptr;
  return found != nullptr ? *found : best();
}

}  // namespace

const NoiseKernels* noise_kernels(const char* name) {
#if defined(TORCHLORE_X86_KERNELS)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return &avx512::kNoiseKernels;
  }
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return &avx2::kNoiseKernels;
  }
#endif
  return std::strcmp(name, "portable") == 0 ? &portable::kNoiseKernels : nullptr;
}

const NoiseKernels& noise_kernels() {
  static const NoiseKernels& kernels = chosen();
  return kernels;
}

}  // namespace torchlore::kernels
