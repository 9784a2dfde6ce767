#include "per_example_kernels.hpp"

#include "../../core/kernels/kernel_sets.hpp"

namespace torchlore::kernels {

namespace portable {
extern const PerExampleKernels kPerExampleKernels;
}
#if defined(TORCHLORE_X86_KERNELS)
namespace avx2 {
extern const PerExampleKernels kPerExampleKernels;
}
namespace avx512 {
extern const PerExampleKernels kPerExampleKernels;
}
#endif

namespace {

#if defined(TORCHLORE_X86_KERNELS)
constexpr KernelSets<PerExampleKernels> kSets = {
    &portable::kPerExampleKernels, &avx2::kPerExampleKernels, &avx512::kPerExampleKernels};
#else
constexpr KernelSets<PerExampleKernels> kSets = {&portable::kPerExampleKernels};
#endif

}  // namespace

const PerExampleKernels* per_example_kernels(const char* name) { return kSets.find(name); }

const PerExampleKernels& per_example_kernels() {
  static const PerExampleKernels& kernels = *kSets.find(chosen_set());
  return kernels;
}

}  // namespace torchlore::kernels
