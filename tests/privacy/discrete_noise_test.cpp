#include "torchlore/privacy/discrete_noise.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "noise_statistics.hpp"
#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

std::vector<int64_t> numbers_of(const at::Tensor& tensor) {
  const auto flat = tensor.flatten();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

TEST(DiscreteNoise, HasTheExactProbabilities) {
  for (const auto& expected : testing::discrete_distributions()) {
    const auto source = NoiseSource::fast_not_secure(31);
    const auto drawn = expected.laplace ? discrete_laplace({300, 500}, expected.scale, source)
                                        : discrete_gaussian({300, 500}, expected.scale, source);
    EXPECT_LT(testing::surprise(numbers_of(drawn), expected), 4)
        << expected.laplace << ' ' << expected.scale;
  }
}

TEST(DiscreteNoise, ASecureSourceHasThemToo) {
  for (const auto& expected : testing::discrete_distributions()) {
    const auto drawn = expected.laplace ? discrete_laplace({100'000}, expected.scale)
                                        : discrete_gaussian({100'000}, expected.scale);
    EXPECT_LT(testing::surprise(numbers_of(drawn), expected), 40)
        << expected.laplace << ' ' << expected.scale;
  }
}

TEST(DiscreteNoise, DoesNotDependOnThreads) {
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = discrete_gaussian({200'001}, 50, NoiseSource::fast_not_secure(1));
  at::set_num_threads(3);
  EXPECT_TRUE(at::equal(discrete_gaussian({200'001}, 50, NoiseSource::fast_not_secure(1)), one));
  at::set_num_threads(threads);
}

TEST(DiscreteNoise, TakesEveryShapeAndTheEndsOfItsRange) {
  EXPECT_EQ(discrete_gaussian({}, 1).dim(), 0);
  EXPECT_EQ(discrete_laplace({0, 3}, 1).numel(), 0);
  for (const double scale : {0.25, 0x1p46}) {
    const auto widths = {
        discrete_gaussian({1'000}, scale).to(at::kDouble).div(scale).abs().max().item<double>(),
        discrete_laplace({1'000}, scale).to(at::kDouble).div(scale).abs().max().item<double>()};
    for (const double width : widths) EXPECT_LT(width, 60);
  }
  EXPECT_EQ(
      message_of<c10::ValueError>([] { discrete_gaussian({1}, 0); }),
      "the scale of discrete noise, in grid units, must lie in [0.25, 7.03687e+13], but is 0");
  EXPECT_THROW(discrete_laplace({1}, NAN), c10::ValueError);
}

}  // namespace
}  // namespace torchlore
