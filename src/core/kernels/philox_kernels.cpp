#include "philox_kernels.hpp"

#include "kernel_sets.hpp"

namespace torchlore::kernels {

namespace portable {
extern const PhiloxKernels kPhiloxKernels;
}
#if defined(TORCHLORE_X86_KERNELS)
namespace avx2 {
extern const PhiloxKernels kPhiloxKernels;
}
namespace avx512 {
extern const PhiloxKernels kPhiloxKernels;
}
#endif

namespace {

#if defined(TORCHLORE_X86_KERNELS)
constexpr KernelSets<PhiloxKernels> kSets = {&portable::kPhiloxKernels, &avx2::kPhiloxKernels,
                                             &avx512::kPhiloxKernels};
#else
constexpr KernelSets<PhiloxKernels> kSets = {&portable::kPhiloxKernels};
#endif

}  // namespace

const PhiloxKernels* philox_kernels(const char* name) { return kSets.find(name); }

const PhiloxKernels& philox_kernels() {
  static const PhiloxKernels& kernels = *kSets.find(chosen_set());
  return kernels;
}

}  // namespace torchlore::kernels
