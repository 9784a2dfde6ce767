#include "shifted_kernels.hpp"

#include "../../core/kernels/kernel_sets.hpp"

namespace torchlore::kernels {

namespace portable {
extern const ShiftedKernels kShiftedKernels;
}
#if defined(TORCHLORE_X86_KERNELS)
namespace avx2 {
extern const ShiftedKernels kShiftedKernels;
}
namespace avx512 {
extern const ShiftedKernels kShiftedKernels;
}
#endif

namespace {

#if defined(TORCHLORE_X86_KERNELS)
constexpr KernelSets<ShiftedKernels> kSets = {&portable::kShiftedKernels, &avx2::kShiftedKernels,
                                              &avx512::kShiftedKernels};
#else
constexpr KernelSets<ShiftedKernels> kSets = {&portable::kShiftedKernels};
#endif

}  // namespace

const ShiftedKernels* shifted_kernels(const char* name) { return kSets.find(name); }

const ShiftedKernels& shifted_kernels() {
  static const ShiftedKernels& kernels = *kSets.find(chosen_set());
  return kernels;
}

}  // namespace torchlore::kernels
