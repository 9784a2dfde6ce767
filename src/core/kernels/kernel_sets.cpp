#include "kernel_sets.hpp"

#include <cstdlib>
#include <cstring>

namespace torchlore::kernels {

bool machine_runs(const char* name) {
#if defined(TORCHLORE_X86_KERNELS)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx512bf16") == 0) {
    return machine_runs("avx512") && __builtin_cpu_supports("avx512bf16");
  }
  if (std::strcmp(name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  if (std::strcmp(name, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
#endif
  return std::strcmp(name, "portable") == 0;
}

const char* chosen_set() {
  const char* asked = std::getenv("TORCHLORE_KERNELS");
  if (asked != nullptr && machine_runs(asked)) return asked;
  if (machine_runs("avx512bf16")) return "avx512bf16";
  return machine_runs("avx512") ? "avx512" : machine_runs("avx2") ? "avx2" : "portable";
}

}  // namespace torchlore::kernels
