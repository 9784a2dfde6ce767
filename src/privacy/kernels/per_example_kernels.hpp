#pragma once

#include <cstdint>

/// The loops of per-example gradients, float32 on raw memory. per_example_kernels.inc is compiled once
/// per instruction set; `per_example_kernels()` picks the best set this machine has.
namespace torchlore::kernels {

/// A sum of outer products, as the layers' per-example weight gradients are:
///
///   product[m][n] = Σ_{r < runs} Σ_{k < length} left(m, r, k) · right(r, k, n)
///
/// A side is packed in panels (see `pack_left` and `pack_right`), which are `*_panel` floats apart, or
/// lies as its strides say, with `*_panel` 0. Elements of the right side are neighbours along n, and
/// kReadAhead floats behind its last must be readable; their values do not matter.
struct OuterSum {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t runs = 1;
  int64_t length = 0;
  const float* left = nullptr;
  int64_t left_panel = 0;
  int64_t left_row = 1;
  int64_t left_run = 0;
  int64_t left_step = 0;
  const float* right = nullptr;
  int64_t right_panel = 0;
  int64_t right_run = 0;
  int64_t right_step = 0;
  float* product = nullptr;  ///< [rows, columns]; nullptr: only the norm is wanted
  int64_t product_row = 0;   ///< its stride from row to row
};

/// Floats behind the right side of an `OuterSum` that are read and not used.
inline constexpr int64_t kReadAhead = 16;

/// Rows of one example: `runs` blocks of `rows` contiguous rows.
struct ExampleRows {
  const float* data = nullptr;
  int64_t runs = 1;
  int64_t run_stride = 0;  ///< in floats
  int64_t rows = 0;        ///< of one run
  int64_t width = 0;
};

struct PerExampleKernels {
  /// Writes the product where it is wanted. Returns its squared norm.
  double (*outer_sum)(const OuterSum& sum);
  /// Rows to the left side's panels, [ceil(width / panel_rows)][count][panel_rows], and their sum over
  /// the rows to `sum` where that is not nullptr.
  void (*pack_left)(const ExampleRows& from, float* to, float* sum);
  /// Rows to the right side's panels, [panels(width)][count][panel_columns].
  void (*pack_right)(const ExampleRows& from, float* to);
  /// Panels that a right side of this width takes.
  int64_t (*right_panels)(int64_t width);
  /// to[i · channels + c] = from[c · channel_stride + i], for `places` i: channels become neighbours.
  void (*interleave)(const float* from, int64_t channel_stride, int64_t channels, int64_t places,
                     float* to);
  /// sum[i] += Σ_row factor[row] · data[row · stride + i]. Rows with factor 0 are not read.
  void (*add_weighted)(float* sum, int64_t count, const float* data, int64_t stride,
                       const float* factors, int64_t rows);
  /// weight[i] += g[i] · (x[i] - mean) · rstd and bias[i] += g[i].
  void (*add_normalized)(float* weight, float* bias, const float* g, const float* x, float mean,
                         float rstd, int64_t count);
  /// Σ g · (x - mean) to `dot`, Σ g to `sum`.
  void (*centered_dot)(const float* g, const float* x, float mean, int64_t count, double* dot,
                       double* sum);
  /// Sum of squares: in float32 as far as its range and 1,024 elements go, else in float64. inf or NaN if
  /// any element is.
  double (*sum_squares)(const float* data, int64_t count);
  int64_t panel_rows;
  int64_t panel_columns;
  const char* name;
};

/// The best set for this machine, or what TORCHLORE_KERNELS asks for (see `chosen_set`).
const PerExampleKernels& per_example_kernels();

/// A named set, or nullptr where this build or machine lacks it.
const PerExampleKernels* per_example_kernels(const char* name);

}  // namespace torchlore::kernels
