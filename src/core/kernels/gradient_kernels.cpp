#include "gradient_kernels.hpp"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace torchlore::kernels {

namespace portable {
extern const GradientKernels kKernels;
}
#if defined(TORCHLORE_X86_KERNELS)
namespace avx2 {
extern const GradientKernels kKernels;
}
namespace avx512 {
extern const GradientKernels kKernels;
}
#endif

namespace {

const GradientKernels& best() {
#if defined(TORCHLORE_X86_KERNELS)
  for (const char* name : {"avx512", "avx2"}) {
    if (const auto* found = gradient_kernels(name)) return *found;
  }
#endif
  return portable::kKernels;
}

const GradientKernels& chosen() {
  const char* asked = std::getenv("TORCHLORE_KERNELS");
  const auto* found = asked != nullptr ? gradient_kernels(asked) : nullptr;
  return found != nullptr ? *found : best();
}

}  // namespace

const GradientKernels* gradient_kernels(const char* name) {
#if defined(TORCHLORE_X86_KERNELS)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return &avx512::kKernels;
  }
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return &avx2::kKernels;
  }
#endif
  return std::strcmp(name, "portable") == 0 ? &portable::kKernels : nullptr;
}

const GradientKernels& gradient_kernels() {
  static const GradientKernels& kernels = chosen();
  return kernels;
}

}  // namespace torchlore::kernels
