#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

/// Tolerances of every numeric test, one table per dtype.
namespace torchlore::testing {

struct Tolerance {
  double relative;
  double absolute;
};

/// A few hundred units in the last place: enough for sums in another order, not for a wrong formula.
inline Tolerance tolerance(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return {1e-12, 1e-14};
    case at::kFloat:
      return {1e-5, 1e-7};
    case at::kHalf:
      return {2e-3, 1e-4};
    case at::kBFloat16:
      return {1.6e-2, 1e-3};
    default:
      return {0, 0};
  }
}

/// Equal within the tolerance of the actual tensor's dtype; shapes and NaN places must agree.
inline ::testing::AssertionResult close(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) {
    return ::testing::AssertionFailure()
           << "shape " << actual.sizes() << " instead of " << expected.sizes();
  }
  const auto limit = tolerance(actual.scalar_type());
  const auto a = actual.to(at::kDouble).cpu();
  const auto b = expected.to(at::kDouble).cpu();
  if (at::allclose(a, b, limit.relative, limit.absolute, /*equal_nan=*/true)) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure()
         << "largest difference " << (a - b).abs().max().item<double>() << "\nactual\n"
         << actual << "\nexpected\n"
         << expected;
}

/// Equal bit for bit: shape, dtype and every element.
inline ::testing::AssertionResult same(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.scalar_type() != expected.scalar_type() || !at::equal(actual.cpu(), expected.cpu())) {
    return ::testing::AssertionFailure() << "not equal:\n" << actual << "\nand\n" << expected;
  }
  return ::testing::AssertionSuccess();
}

}  // namespace torchlore::testing
