#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

#include "../../src/core/buffer_pool.hpp"
#include "../../src/privacy/kernels/example_layout.hpp"
#include "support/tolerance.hpp"

/// What the tests of the per-example kernels share.
namespace torchlore::testing {

/// What a sum of products of numbers around 1 may be off by: 1e-5 of its size, and of 0.1 where little
/// is left of large parts.
inline double allowance(double size) { return tolerance(at::kFloat).relative * (size + 0.1); }

/// As far from the expected values as `allowance` says, in the norm of the difference.
inline ::testing::AssertionResult near(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.numel() != expected.numel()) {
    return ::testing::AssertionFailure()
           << actual.numel() << " elements instead of " << expected.numel();
  }
  if (actual.numel() == 0) return ::testing::AssertionSuccess();
  const auto wide = expected.reshape(-1).to(at::kDouble);
  const double error = (actual.reshape(-1).to(at::kDouble) - wide).norm().item<double>();
  const double size = wide.norm().item<double>();
  if (error <= allowance(size)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "off by " << error << " of " << size;
}

/// One instruction set of this machine, and where a parameter's gradients go.
class PerExampleKernelTest : public ::testing::TestWithParam<const char*> {
 protected:
  /// Gradients and norms of one parameter; NaN where nothing was written.
  struct Gradients {
    Gradients(int64_t batch, int64_t count)
        : norms(at::full({batch}, kStart, at::kDouble)), gradients(at::full({batch, count}, NAN)) {}

    kernels::PerExample all() {
      return {norms.mutable_data_ptr<double>(), gradients.mutable_data_ptr<float>()};
    }
    kernels::PerExample norms_only() { return {norms.mutable_data_ptr<double>()}; }
    void expect(int64_t example, const at::Tensor& expected) const {
      EXPECT_TRUE(near(gradients[example], expected)) << "example " << example;
      expect_norm(example, expected);
    }
    void expect_norm(int64_t example, const at::Tensor& expected) const {
      const double squares = expected.to(at::kDouble).square().sum().item<double>();
      const double norm = std::sqrt(norms[example].item<double>() - kStart);
      EXPECT_NEAR(norm, std::sqrt(squares), allowance(std::sqrt(squares))) << "example " << example;
    }

    static constexpr double kStart = 1;  ///< norms are added to what is there
    at::Tensor norms;
    at::Tensor gradients;
  };

  void SetUp() override {
    k = kernels::per_example_kernels(GetParam());
    if (k == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
    at::manual_seed(1);
    at::set_num_threads(1);  // what is tested is small
  }

  const kernels::PerExampleKernels* k = nullptr;
  detail::BufferPool scratch{1 << 20};
};

}  // namespace torchlore::testing
