#include "torchlore/privacy/mechanisms.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "noise_statistics.hpp"
#include "support/message.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"

namespace torchlore {
namespace {

using testing::message_of;

std::vector<double> numbers_of(const at::Tensor& tensor) {
  const auto flat = tensor.flatten().to(at::kDouble);
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

const at::Tensor kValues = at::full({100, 500}, 7.0, at::kDouble);

TEST(GaussianMechanismOnValues, AddsNoiseOfThePublishedDeviation) {
  const GaussianMechanismOptions options{.l2_sensitivity = 2, .epsilon = 1, .delta = 1e-5};
  const auto noisy = gaussian_mechanism(kValues, options, NoiseSource::fast_not_secure(21));
  const auto noise = (noisy - 7) / (2 * 3.730631635);  // tests/privacy/gaussian_mechanism_test.cpp
  EXPECT_LT(testing::kolmogorov_smirnov(numbers_of(noise), testing::normal_cdf), 1.95);
  EXPECT_TRUE(at::equal(kValues, at::full({100, 500}, 7.0, at::kDouble)));

  const auto secure = (gaussian_mechanism(kValues, options) - 7) / (2 * 3.730631635);
  EXPECT_LT(testing::kolmogorov_smirnov(numbers_of(secure), testing::normal_cdf), 3.5);
}

TEST(LaplaceMechanism, AddsNoiseOfScaleSensitivityOverEpsilon) {
  const LaplaceMechanismOptions options{.l1_sensitivity = 3, .epsilon = 0.5};
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const auto noisy =
        laplace_mechanism(kValues.to(dtype), options, NoiseSource::fast_not_secure(22));
    EXPECT_EQ(noisy.scalar_type(), dtype);
    EXPECT_LT(testing::kolmogorov_smirnov(numbers_of((noisy - 7) / 6), testing::laplace_cdf), 1.95);
  }
  const auto secure = (laplace_mechanism(kValues, options) - 7) / 6;
  EXPECT_LT(testing::kolmogorov_smirnov(numbers_of(secure), testing::laplace_cdf), 3.5);
}

// A Laplace number on the grid is a whole number of steps; a naive one is not.
TEST(LaplaceMechanism, ResultsLieOnTheGridWhateverTheValues) {
  const auto noisy =
      laplace_mechanism(at::rand({1'000}, at::kDouble), {.l1_sensitivity = 1.5, .epsilon = 1});
  const auto steps = noisy * 0x1p42;
  EXPECT_TRUE(at::equal(steps, steps.round()));
}

TEST(Mechanisms, KeepShapeAndDtypeAndTakeAnyStrides) {
  const LaplaceMechanismOptions laplace{.l1_sensitivity = 1, .epsilon = 1};
  const GaussianMechanismOptions gaussian{.l2_sensitivity = 1, .epsilon = 1, .delta = 1e-6};
  for (const auto& values :
       {at::zeros({3, 4}).t(), at::zeros({1}).expand({5}), at::zeros({}, at::kDouble),
        at::zeros({0, 2}), at::zeros({4}, at::kBFloat16), at::zeros({2}).requires_grad_()}) {
    for (const auto& result :
         {laplace_mechanism(values, laplace), gaussian_mechanism(values, gaussian)}) {
      EXPECT_EQ(result.sizes(), values.sizes());
      EXPECT_EQ(result.scalar_type(), values.scalar_type());
      EXPECT_FALSE(result.requires_grad());
    }
  }
}

TEST(Mechanisms, RefuseBadInput) {
  const auto zero = at::zeros({2});
  EXPECT_EQ(message_of<c10::ValueError>(
                [&] { laplace_mechanism(zero, {.l1_sensitivity = 0, .epsilon = 1}); }),
            "l1_sensitivity must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of<c10::ValueError>([&] { laplace_mechanism(zero, {.l1_sensitivity = 1}); }),
            "epsilon must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              gaussian_mechanism(zero, {.l2_sensitivity = -1, .epsilon = 1, .delta = 1e-5});
            }),
            "l2_sensitivity must be a finite number above 0, but is -1");
  EXPECT_EQ(message_of<c10::ValueError>(
                [&] { gaussian_mechanism(zero, {.l2_sensitivity = 1, .epsilon = 1}); }),
            "delta must lie in (0, 1), but is 0");
  EXPECT_THROW(gaussian_mechanism(zero, {.l2_sensitivity = 1, .epsilon = -1, .delta = 1e-5}),
               c10::ValueError);
  EXPECT_THROW(gaussian_mechanism(zero, {.l2_sensitivity = 1, .epsilon = 1, .delta = 1}),
               c10::ValueError);
  EXPECT_THROW(laplace_mechanism(zero, {.l1_sensitivity = NAN, .epsilon = 1}), c10::ValueError);
  EXPECT_THROW(laplace_mechanism({}, {.l1_sensitivity = 1, .epsilon = 1}), c10::ValueError);
  EXPECT_THROW(laplace_mechanism(at::zeros({2}, at::kLong), {.l1_sensitivity = 1, .epsilon = 1}),
               c10::TypeError);
  for (const double bad : {NAN, INFINITY}) {
    EXPECT_THROW(laplace_mechanism(at::full({2}, bad), {.l1_sensitivity = 1, .epsilon = 1}),
                 c10::ValueError);
    EXPECT_THROW(
        gaussian_mechanism(at::full({2}, bad), {.l2_sensitivity = 1, .epsilon = 1, .delta = 1e-5}),
        c10::ValueError);
  }
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              laplace_mechanism(at::zeros({1 << 10}), {.l1_sensitivity = 1, .epsilon = 0x1p-16});
            }),
            "the noise is 65536 times the sensitivity, and that times the elements is 6.71089e+07; "
            "from 2^26 "
            "on, rounding to the noise's grid would not be paid for. Release fewer values at once, "
            "or with a "
            "larger epsilon");
}

}  // namespace
}  // namespace torchlore
