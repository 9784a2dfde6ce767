#pragma once

#include <ATen/core/Tensor.h>

/// Symmetric int8 quantization by rows: value = q * scale, with scale = max |row| / 127.
namespace torchlore::memory {

/// Values as int8, one float32 scale per row.
struct QuantizedRows {
  at::Tensor values;  ///< int8 [rows, row]; the last row is filled up with zeros
  at::Tensor scales;  ///< float32 [rows, 1]; NaN for a row that holds inf or NaN
};

/// Quantizes floating-point values [n], rounding to the nearest, ties to even.
QuantizedRows quantize_rows(const at::Tensor& values, int64_t row);

/// The first `length` values, in `dtype`.
at::Tensor dequantize_rows(const QuantizedRows& rows, int64_t length, at::ScalarType dtype);

}  // namespace torchlore::memory
