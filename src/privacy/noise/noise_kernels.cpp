#include "noise_kernels.hpp"

#include "../../core/kernels/kernel_sets.hpp"

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

#if defined(TORCHLORE_X86_KERNELS)
constexpr KernelSets<NoiseKernels> kSets = {&portable::kNoiseKernels, &avx2::kNoiseKernels,
                                            &avx512::kNoiseKernels};
#else
constexpr KernelSets<NoiseKernels> kSets = {&portable::kNoiseKernels};
#endif

}  // namespace

const NoiseKernels* noise_kernels(const char* name) { return kSets.find(name); }

const NoiseKernels& noise_kernels() {
  static const NoiseKernels& kernels = *kSets.find(chosen_set());
  return kernels;
}

}  // namespace torchlore::kernels
