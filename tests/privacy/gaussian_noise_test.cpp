#include "torchlore/privacy/gaussian_noise.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

const NoiseSource kSeeded = NoiseSource::fast_not_secure(11);

at::Tensor noise_of(const at::Tensor& like, double stddev, const NoiseSource& source) {
  const auto noise = at::zeros_like(like);
  add_gaussian_noise_({noise}, stddev, source);
  return noise;
}

double value(const at::Tensor& tensor) { return tensor.to(at::kDouble).item<double>(); }

/// Kolmogorov–Smirnov distance of normal numbers times the square root of their number: above 3.5 with
/// probability 5e-11, for the secure source cannot be seeded.
double distance(const at::Tensor& numbers) {
  const auto sorted = std::get<0>(numbers.flatten().to(at::kDouble).sort());
  const auto n = static_cast<double>(sorted.numel());
  const auto cdf = at::special_ndtr(sorted);
  const auto rank = at::arange(sorted.numel(), at::kDouble);
  return std::max(value((cdf - rank / n).max()), value(((rank + 1) / n - cdf).max())) *
         std::sqrt(n);
}

TEST(GaussianNoise, IsNormalWithItsDeviation) {
  for (const auto& source : {kSeeded, NoiseSource::secure()}) {
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      const auto noise = noise_of(at::zeros({200, 201}, dtype), 3.7, source) / 3.7;
      EXPECT_LT(distance(noise), 3.5) << source.is_secure() << dtype;
      EXPECT_NEAR(value(noise.pow(4).mean()), 3, 0.5);  // ten deviations
      EXPECT_GT(value(noise.abs().max()), 3.5);
    }
  }
}

TEST(GaussianNoise, IsAddedToTheValuesOfEveryTensor) {
  for (const auto& source : {kSeeded, NoiseSource::secure()}) {
    const std::vector<at::Tensor> tensors = {at::full({50, 7}, 1e3), at::full({}, 1e3),
                                             at::empty({0}), at::full({70'000}, 1e3, at::kDouble)};
    add_gaussian_noise_(tensors, 0.5, source);
    const auto all = at::cat({tensors[0].flatten(), tensors[1].reshape({1}), tensors[3]}).sub(1e3);
    EXPECT_LT(distance(all / 0.5), 3.5);
    EXPECT_LT(value((all == 0).sum()), 10);
    const auto neighbours = (all.slice(0, 1) * all.slice(0, 0, -1)).mean() / 0.25;
    EXPECT_LT(std::abs(value(neighbours)), 7 / std::sqrt(70'000.0));
  }
}

// What the secure noise leaves must be a whole number of grid steps, whatever the values were: then the
// bits below tell nothing about them.
TEST(GaussianNoise, SecureResultsLieOnTheGrid) {
  const auto values = at::rand({1'000}, at::kDouble);
  add_gaussian_noise_({values}, 1.5, NoiseSource::secure());
  const auto steps = values * 0x1p42;
  EXPECT_TRUE(at::equal(steps, steps.round()));
  EXPECT_GT(value(steps.fmod(2).abs().mean()), 0.4);  // and on no coarser one
}

TEST(GaussianNoise, DoesNotDependOnThreadsStridesOrHowTensorsAreCut) {
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = noise_of(at::zeros({150'001}), 1, NoiseSource::fast_not_secure(2));
  at::set_num_threads(3);
  EXPECT_TRUE(same(noise_of(at::zeros({150'001}), 1, NoiseSource::fast_not_secure(2)), one));
  at::set_num_threads(threads);

  const auto strided = at::zeros({2, 150'001}).t().select(1, 1);
  add_gaussian_noise_({strided}, 1, NoiseSource::fast_not_secure(2));
  EXPECT_TRUE(same(strided, one));

  const auto whole = at::zeros({150'001});
  add_gaussian_noise_({whole.slice(0, 0, 70'003), whole.slice(0, 70'003)}, 1,
                      NoiseSource::fast_not_secure(2));
  EXPECT_TRUE(same(whole, one));
}

TEST(GaussianNoise, LowPrecisionIsRoundedOnceFromFloat32) {
  const auto wide = noise_of(at::zeros({100}), 2, NoiseSource::fast_not_secure(4));
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    EXPECT_TRUE(same(noise_of(at::zeros({100}, dtype), 2, NoiseSource::fast_not_secure(4)),
                     wide.to(dtype)));
  }
}

TEST(GaussianNoise, IsNotRecordedAndTakesALeaf) {
  const auto leaf = at::zeros({3}).requires_grad_();
  add_gaussian_noise_({leaf}, 1);
  EXPECT_FALSE(leaf.grad_fn());
  EXPECT_GT(value(leaf.detach().abs().sum()), 0);
}

TEST(GaussianNoise, CallsDifferAndNoneIsNone) {
  const auto like = at::zeros({10});
  EXPECT_FALSE(at::equal(noise_of(like, 1, kSeeded), noise_of(like, 1, kSeeded)));
  EXPECT_FALSE(at::equal(noise_of(like, 1, {}), noise_of(like, 1, {})));
  EXPECT_TRUE(same(noise_of(like, 0, {}), like));
  add_gaussian_noise_({}, 1);
}

TEST(GaussianNoise, ExtremeDeviationsWork) {
  for (const double stddev : {1e-200, 1e200}) {
    const auto noise = noise_of(at::zeros({500}, at::kDouble), stddev, {}) / stddev;
    EXPECT_NEAR(value(noise.std()), 1, 0.2);
  }
}

TEST(GaussianNoise, RefusesBadInputAndChangesNothing) {
  const auto good = at::zeros({2});
  const auto refused = [&](const at::Tensor& bad) {
    const auto text = message_of([&] { add_gaussian_noise_({good, bad}, 1); });
    EXPECT_TRUE(at::equal(good, at::zeros({2})));
    return text;
  };
  EXPECT_EQ(
      refused({}),
      "tensor 1 of those that should get noise is undefined; the gradient of a parameter that was "
      "not used must be zeros, for it needs noise too");
  EXPECT_EQ(
      refused(at::zeros({2}, at::kLong)),
      "noise is added to float32, float64, float16 and bfloat16 tensors, but tensor 1 is Long");
  EXPECT_EQ(
      refused(at::zeros({1}).expand({3})),
      "tensor 1 has elements that share memory (an expanded tensor); noise is added to a copy: "
      "clone() it");
  EXPECT_EQ(refused(good.slice(0, 1)),
            "two of the tensors that should get noise share memory; name each once");
  for (const double bad : {NAN, INFINITY, -INFINITY}) {
    EXPECT_EQ(
        refused(at::full({3}, bad)),
        "tensor 1 of those that should get noise holds a value that is not finite, which no noise "
        "hides; drop the examples that caused it before they are summed");
  }
  EXPECT_EQ(message_of([&] { add_gaussian_noise_({at::full({1}, 1e308, at::kDouble)}, 1e-5); }),
            "tensor 0 holds 1e+308, which is out of proportion to the noise");
  for (const double bad : {-1.0, static_cast<double>(NAN), static_cast<double>(INFINITY), 1e-300}) {
    EXPECT_THROW(add_gaussian_noise_({good}, bad), c10::ValueError) << bad;
  }
  EXPECT_EQ(message_of<c10::ValueError>([&] { add_gaussian_noise_({good}, -1); }),
            "stddev of the noise, if it is not 0, must lie in [1e-200, 1e+200], but is -1");
}

}  // namespace
}  // namespace torchlore
