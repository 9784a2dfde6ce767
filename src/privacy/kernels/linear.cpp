#include "linear.hpp"

#include <ATen/Parallel.h>

#include <algorithm>

namespace torchlore::kernels {
namespace {

/// ‖g xᵀ‖² = ‖g‖²·‖x‖².
void norms_of_single_rows(const LinearRows& r, const PerExample& weight, const PerExample& bias,
                          const PerExampleKernels& k) {
  at::parallel_for(0, r.layout.batch, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const double g = k.sum_squares(r.gradient + b * r.out, r.out);
      if (weight.squared_norms != nullptr) {
        weight.squared_norms[b] += g * k.sum_squares(r.input + b * r.in, r.in);
      }
      if (bias.squared_norms != nullptr) bias.squared_norms[b] += g;
      if (bias.gradients == nullptr) continue;
      std::copy_n(r.gradient + b * r.out, r.out, bias.gradients + b * r.out);
    }
  });
}

/// The bias alone: sums of rows.
void sums_of_rows(const LinearRows& r, const PerExample& bias, detail::BufferPool& scratch,
                  const PerExampleKernels& k) {
  constexpr float one = 1;
  at::parallel_for(0, r.layout.batch, 1, [&](int64_t begin, int64_t end) {
    const auto room = scratch.empty({r.out});
    for (int64_t b = begin; b < end; ++b) {
      float* sum =
          bias.gradients != nullptr ? bias.gradients + b * r.out : room.mutable_data_ptr<float>();
      std::fill_n(sum, r.out, 0.0F);
      for (int64_t block = 0; block < r.layout.outer; ++block) {
        for (int64_t i = 0; i < r.layout.inner; ++i) {
          const float* row = r.gradient + r.layout.row(block, b, i) * r.out;
          k.add_weighted(sum, r.out, row, 0, &one, 1);
        }
      }
      if (bias.squared_norms != nullptr) bias.squared_norms[b] += k.sum_squares(sum, r.out);
    }
  });
}

/// One thread's packed rows.
struct Panels {
  Panels(const LinearRows& r, detail::BufferPool& scratch, const PerExampleKernels& k)
      : left(scratch.empty({(r.out + k.panel_rows) * r.layout.rows()})),
        right(scratch.empty({k.right_panels(r.in) * k.panel_columns * r.layout.rows()})),
        bias(scratch.empty({r.out})) {}

  at::Tensor left, right, bias;
};

void one_example(const LinearRows& r, int64_t b, const PerExample& weight, const PerExample& bias,
                 const Panels& panels, const PerExampleKernels& k) {
  const int64_t count = r.layout.rows();
  auto* left = panels.left.mutable_data_ptr<float>();
  auto* sum = bias.gradients != nullptr ? bias.gradients + b * r.out
                                        : panels.bias.mutable_data_ptr<float>();
  k.pack_left(r.layout.rows_of(r.gradient, r.out, b), left, bias.wanted() ? sum : nullptr);
  if (bias.squared_norms != nullptr) bias.squared_norms[b] += k.sum_squares(sum, r.out);
  auto* right = panels.right.mutable_data_ptr<float>();
  k.pack_right(r.layout.rows_of(r.input, r.in, b), right);
  const double squares = k.outer_sum(
      {.rows = r.out,
       .columns = r.in,
       .length = count,
       .left = left,
       .left_panel = count * k.panel_rows,
       .left_step = k.panel_rows,
       .right = right,
       .right_panel = count * k.panel_columns,
       .right_step = k.panel_columns,
       .product = weight.gradients != nullptr ? weight.gradients + b * r.out * r.in : nullptr,
       .product_row = r.in});
  if (weight.squared_norms != nullptr) weight.squared_norms[b] += squares;
}

}  // namespace

void linear_gradients(const LinearRows& rows, const PerExample& weight, const PerExample& bias,
                      detail::BufferPool& scratch, const PerExampleKernels& kernels) {
  if (rows.layout.rows() == 1 && weight.gradients == nullptr) {
    norms_of_single_rows(rows, weight, bias, kernels);
    return;
  }
  if (!weight.wanted()) {
    sums_of_rows(rows, bias, scratch, kernels);
    return;
  }
  at::parallel_for(0, rows.layout.batch, 1, [&](int64_t begin, int64_t end) {
    const Panels panels(rows, scratch, kernels);
    for (int64_t b = begin; b < end; ++b) one_example(rows, b, weight, bias, panels, kernels);
  });
}

}  // namespace torchlore::kernels
