#pragma once

#include <cstdint>

/// The loops of attention along shifts: row i of one side meets row i + shift of the other, for a short
/// list of shifts, so that all that is read lies in rows that follow each other. shifted_kernels.inc is
/// compiled once per instruction set; `shifted_kernels()` picks the best set this machine has.
namespace torchlore::kernels {

/// Widths of rows are multiples of this: what is shorter is padded with zeros.
inline constexpr int64_t kShiftedWidth = 16;

/// The longest list of shifts.
inline constexpr int64_t kMostShifts = 128;

/// Rows of a tile.
inline constexpr int64_t kShiftedTile = 64;

/// `count` shifts, monotone, at most kMostShifts: row i meets the partners i + shift[a] that lie in [0, partners).
struct Shifts {
  const int64_t* shift = nullptr;
  int64_t count = 0;
  int64_t partners = 0;
};

/// Rows of T, `stride` elements apart.
template <typename T>
struct ShiftedRows {
  T* data = nullptr;
  int64_t stride = 0;
};

/// A number for each row and shift, tile by tile: [tiles of rows][shifts][kShiftedTile], so that what is
/// written and read together lies together. Aligned to 64 bytes.
template <typename T>
struct ShiftedTable {
  T* data = nullptr;

  /// The numbers of shift a, of which there are `count`, for the rows from `row` to its tile's end.
  T* at(int64_t row, int64_t a, int64_t count) const {
    return data + (row / kShiftedTile * count + a) * kShiftedTile + row % kShiftedTile;
  }
};

/// table(i, a) = scale · x[i] · y[i + shift[a]], or `absent` where there is no such partner.
template <typename T>
struct ShiftedDots {
  Shifts shifts;
  int64_t width = 0;  ///< of x and y
  T scale = 1;
  T absent = 0;
  ShiftedRows<const T> x;
  ShiftedRows<const T> y;
  ShiftedTable<T> table;
};

/// out[i] = Σ_a weight · y[i + shift[a]], over the partners that there are.
template <typename T>
struct ShiftedSums {
  Shifts shifts;
  int64_t width = 0;  ///< of y and out
  ShiftedTable<const T> weights;
  bool by_partner = false;  ///< the weight is that of (i + shift[a], a), else of (i, a)
  bool add = false;         ///< out is added to, else written
  /// `out` is written around the caches, which keep y instead: for results that they could not hold. Rows
  /// of out must be aligned to 64 bytes. Not together with `add`.
  bool around_caches = false;
  ShiftedRows<const T> y;
  ShiftedRows<T> out;
};

/// The loops for one type of number. All work on the rows [begin, end) of one tile, of which
/// `begin` is the first, and on `count` shifts.
template <typename T>
struct ShiftedLoops {
  void (*dots)(const ShiftedDots<T>&, int64_t begin, int64_t end);
  void (*sums)(const ShiftedSums<T>&, int64_t begin, int64_t end);
  /// scores = softmax of the scores over the shifts; log_sum_exp[i] of row i. A score of -inf gets the
  /// weight 0; rows with no other score get the log-sum-exp -inf.
  void (*softmax)(ShiftedTable<T> scores, int64_t count, T* log_sum_exp, int64_t begin,
                  int64_t end);
  /// scores = exp(scores - log_sum_exp[i]); 0 for -inf.
  void (*weights)(ShiftedTable<T> scores, int64_t count, const T* log_sum_exp, int64_t begin,
                  int64_t end);
  /// dots = scale · weights · (dots - delta[i]).
  void (*score_gradients)(ShiftedTable<T> dots, ShiftedTable<const T> weights, int64_t count,
                          T scale, const T* delta, int64_t begin, int64_t end);
};

struct ShiftedKernels {
  ShiftedLoops<float> single;
  ShiftedLoops<double> wide;
  const char* name;
};

/// The best set for this machine, or what TORCHLORE_KERNELS asks for (see `chosen_set`).
const ShiftedKernels& shifted_kernels();

/// A named set, or nullptr where this build or machine lacks it.
const ShiftedKernels* shifted_kernels(const char* name);

}  // namespace torchlore::kernels
