#pragma once

#include <cstdint>

/// Philox streams on raw memory. philox_kernels.inc is compiled once per instruction set;
/// `philox_kernels()` picks the best one that this machine has.
namespace torchlore::kernels {

/// 16 Philox blocks make 64 words: word w of block b is at 16 w + b.
constexpr int64_t kPhiloxWords = 64;
constexpr int64_t kPhiloxBlocks = 16;

/// The counter and key of a Philox stream.
struct PhiloxCounter {
  uint64_t index = 0;  // of the first block; a multiple of 16
  uint32_t step = 0;
  uint32_t stream = 0;
  uint32_t key[2] = {0, 0};
};

struct PhiloxKernels {
  /// Fills 64 × groups words: the same on every instruction set.
  void (*fill)(uint32_t* words, int64_t groups, PhiloxCounter counter);
  const char* name;
};

/// The best set for this machine; see `chosen_set`.
const PhiloxKernels& philox_kernels();

/// A named set, or nullptr where this build or machine lacks it.
const PhiloxKernels* philox_kernels(const char* name);

}  // namespace torchlore::kernels
