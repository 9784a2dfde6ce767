#include "gradient_kernels.hpp"

#include "kernel_sets.hpp"

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

#if defined(TORCHLORE_X86_KERNELS)
constexpr KernelSets<GradientKernels> kSets = {&portable::kKernels, &avx2::kKernels,
                                               &avx512::kKernels};
#else
constexpr KernelSets<GradientKernels> kSets = {&portable::kKernels};
#endif

}  // namespace

const GradientKernels* gradient_kernels(const char* name) { return kSets.find(name); }

const GradientKernels& gradient_kernels() {
  static const GradientKernels& kernels = *kSets.find(chosen_set());
  return kernels;
}

}  // namespace torchlore::kernels
