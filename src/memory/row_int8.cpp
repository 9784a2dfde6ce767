#include "row_int8.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace torchlore::memory {
namespace {

constexpr float kSteps = 127;
// The least scale: of a row of zeros or of numbers too small to divide by.
constexpr float kSmallest = std::numeric_limits<float>::min();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// The largest absolute value of a row; inf or NaN if it holds one. Without their sign bits floats
/// are ordered like integers, NaN above inf, and the compiler vectorises an integer maximum.
float largest_of(const float* values, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<int32_t>(values[i]) & 0x7fffffff);
  }
  return std::bit_cast<float>(largest);
}

/// One row; returns its scale.
float quantize_row(const float* values, int64_t count, int8_t* out) {
  const float largest = largest_of(values, count);
  if (!std::isfinite(largest)) {
    std::fill(out, out + count, int8_t{0});
    return kNaN;
  }
  const float scale = std::max(largest / kSteps, kSmallest);
  const float factor = 1 / scale;
  for (int64_t i = 0; i < count; ++i) {
    // Adding 1.5 * 2^23 leaves no bits for a fraction: rounds to the nearest, ties to even.
    const float rounded = (values[i] * factor + 12582912.0f) - 12582912.0f;
    out[i] = static_cast<int8_t>(static_cast<int32_t>(rounded));
  }
  return scale;
}

/// The CPU's way: two reads and one write, without temporaries.
QuantizedRows quantize_on_cpu(const at::Tensor& values, int64_t row) {
  const int64_t length = values.numel();
  const int64_t rows = (length + row - 1) / row;
  QuantizedRows result{at::empty({rows, row}, values.options().dtype(at::kChar)),
                       at::empty({rows, 1}, values.options().dtype(at::kFloat))};
  const float* in = values.const_data_ptr<float>();
  auto* out = result.values.mutable_data_ptr<int8_t>();
  auto* scales = result.scales.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, 32768 / row);
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t count = std::min(row, length - r * row);
      scales[r] = quantize_row(in + r * row, count, out + r * row);
      std::fill(out + r * row + count, out + (r + 1) * row, int8_t{0});
    }
  });
  return result;
}

}  // namespace

QuantizedRows quantize_rows(const at::Tensor& values, int64_t row) {
  const auto single = values.to(at::kFloat);
  if (single.is_cpu()) return quantize_on_cpu(single, row);
  const int64_t missing = (row - single.numel() % row) % row;
  const auto table = at::constant_pad_nd(single, {0, missing}).view({-1, row});
  const auto largest = table.abs().amax({1}, /*keepdim=*/true);
  const auto finite = largest.isfinite();
  const auto scales = largest.div(kSteps).clamp_min(kSmallest);
  const auto whole = at::where(finite, table.mul(scales.reciprocal()), 0).round().to(at::kChar);
  return {whole, at::where(finite, scales, kNaN)};
}

at::Tensor dequantize_rows(const QuantizedRows& rows, int64_t length, at::ScalarType dtype) {
  return at::mul(rows.values, rows.scales).view(-1).slice(0, 0, length).to(dtype);
}

}  // namespace torchlore::memory
