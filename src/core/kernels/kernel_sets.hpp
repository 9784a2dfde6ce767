#pragma once

namespace torchlore::kernels {

/// Whether this machine runs code compiled for "portable", "avx2", "avx512" or "avx512bf16" (see
/// torchlore_add_kernels); false for any other name, and for what this build leaves out.
bool machine_runs(const char* name);

/// The set that TORCHLORE_KERNELS=portable|avx2|avx512|avx512bf16 in the environment asks for, where the machine
/// runs it; else the best that it runs.
const char* chosen_set();

/// The tables of one kernel file. Those that this build leaves out are nullptr.
template <typename Kernels>
struct KernelSets {
  const Kernels* portable = nullptr;
  const Kernels* avx2 = nullptr;
  const Kernels* avx512 = nullptr;

  /// A named table, or nullptr where this build or machine lacks it. "avx512bf16" is avx512 to kernels that
  /// have no use for it.
  const Kernels* find(const char* name) const {
    if (!machine_runs(name)) return nullptr;
    return name[0] == 'p' ? portable : name[3] == '2' ? avx2 : avx512;
  }
};

}  // namespace torchlore::kernels
