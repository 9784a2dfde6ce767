#include "block_kernels.hpp"

#include <cstddef>
#include <cstring>

#include "../../core/kernels/kernel_sets.hpp"
#include "attention_kernels.hpp"

namespace torchlore::kernels {

namespace portable {
extern const BlockKernels kBlockKernels;
}
#if defined(TORCHLORE_X86_KERNELS)
namespace avx2 {
extern const BlockKernels kBlockKernels;
}
namespace avx512 {
extern const BlockKernels kBlockKernels;
}
namespace avx512bf16 {
extern const BlockKernels kBlockKernels;
}
#endif

namespace {

#if defined(TORCHLORE_X86_KERNELS)
constexpr KernelSets<BlockKernels> kSets = {&portable::kBlockKernels, &avx2::kBlockKernels,
                                            &avx512::kBlockKernels};

/// bfloat16 from its own set, the other types from avx512.
const BlockKernels& with_pairs() {
  static const BlockKernels kernels = [] {
    constexpr auto bf16 = static_cast<size_t>(Element::bf16);
    BlockKernels joined = avx512::kBlockKernels;
    for (size_t tile : {0, 1})
      joined.tiles[bf16][tile] = avx512bf16::kBlockKernels.tiles[bf16][tile];
    joined.name = avx512bf16::kBlockKernels.name;
    return joined;
  }();
  return kernels;
}
#else
constexpr KernelSets<BlockKernels> kSets = {&portable::kBlockKernels};
#endif

}  // namespace

const BlockKernels* block_kernels(const char* name) {
#if defined(TORCHLORE_X86_KERNELS)
  if (std::strcmp(name, "avx512bf16") == 0) return machine_runs(name) ? &with_pairs() : nullptr;
#endif
  return kSets.find(name);
}

const BlockKernels& block_kernels() {
  static const BlockKernels& kernels = *block_kernels(chosen_set());
  return kernels;
}

}  // namespace torchlore::kernels
