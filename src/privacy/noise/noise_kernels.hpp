#pragma once

#include <cstdint>

#include "../../core/kernels/philox_kernels.hpp"

/// The loops of noise on raw memory. noise_kernels.inc is compiled once per instruction set;
/// `noise_kernels()` picks the best one that this machine has.
namespace torchlore::kernels {

/// Words that a group of 16 proposals of the stair sampler takes.
constexpr int64_t kStairWords = 48;
constexpr int64_t kStairLanes = 16;
constexpr int kStairCells = 128;

/// What the stair sampler looks up (stair_sampler.hpp says what for).
struct StairLookup {
  uint32_t threshold[kStairCells] = {};  // of the alias method
  uint32_t alias[kStairCells] = {};
  int32_t first_slow = 0;  // cells from here on are always decided exactly
  int32_t shift = 0;       // 40 - log2 of a cell's width: how many low bits of a draw are dropped
  float scale = 0;         // 2^16 / sigma, with sigma in units of 2^-40 cells
};

/// The words of a proposal, and its place in the part's stream.
struct StairProposal {
  uint32_t words[3] = {0, 0, 0};
  int64_t index = 0;
};

/// The exact decision on a proposal: true if it is kept; then *y is its value.
using StairDecision = bool (*)(void* context, const StairProposal& proposal, int64_t* y);

struct NoiseKernels {
  /// Fills 64 × groups standard normal numbers: Box–Muller on the words of `PhiloxKernels`. The last
  /// place may depend on the instruction set.
  void (*normal)(float* numbers, int64_t groups, PhiloxCounter counter);
  /// Decides on 16 × groups proposals and writes the kept ones to `out`, which has room for all of
  /// them. Returns their number. The same on every instruction set.
  /// @param first index of the first proposal.
  int64_t (*stair)(const StairLookup& table, const uint32_t* words, int64_t groups, int64_t first,
                   StairDecision decide, void* context, int64_t* out);
  /// The proposals' acceptance probabilities as the loop above computes them, for tests of their error.
  void (*stair_probability)(const StairLookup& table, const uint32_t* cells,
                            const uint32_t* offsets, float* probability);
  /// values[i] = (nearest whole number to values[i] × inverse + noise[i]) × unit, where unit and inverse
  /// are powers of two and |noise| < 2^53: each sum is rounded once, as IEEE 754 asks for.
  void (*add_on_grid_f32)(float* values, const int64_t* noise, int64_t count, double unit,
                          double inverse);
  void (*add_on_grid_f64)(double* values, const int64_t* noise, int64_t count, double unit,
                          double inverse);
  /// sum[i] += the nearest whole number to values[i] × factor, which is below 2^62.
  void (*accumulate_f32)(int64_t* sum, const float* values, int64_t count, double factor);
  void (*accumulate_f64)(int64_t* sum, const double* values, int64_t count, double factor);
  const char* name;
};

/// How far the computed probability may lie from the true one; the bound is proven in
/// docs/discrete_noise.md and is four times smaller.
constexpr float kStairMargin = 0x1p-18F;

/// The best set for this machine; TORCHLORE_KERNELS=portable|avx2|avx512 in the environment asks for
/// another (read once; ignored where the machine lacks it).
const NoiseKernels& noise_kernels();

/// A named set, or nullptr where this build or machine lacks it.
const NoiseKernels* noise_kernels(const char* name);

}  // namespace torchlore::kernels
