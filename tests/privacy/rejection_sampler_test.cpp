#include "../../src/privacy/noise/rejection_sampler.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "noise_statistics.hpp"
#include "support/message.hpp"

namespace torchlore::privacy {
namespace {

using testing::message_of;

TEST(RejectionSampler, DrawsWithTheExactProbabilities) {
  uint32_t part = 0;
  for (const auto& expected : testing::discrete_distributions()) {
    PhiloxWords words({.step = ++part, .key = {20'260'301}});
    RandomBits bits(words);
    const auto scale = Scale::at_least(expected.scale);
    EXPECT_EQ(scale.value(), expected.scale);
    std::vector<int64_t> samples(100'000);
    for (auto& y : samples) {
      y = expected.laplace ? draw_discrete_laplace(bits, scale)
                           : draw_discrete_gaussian(bits, scale);
    }
    EXPECT_LT(testing::surprise(samples, expected), 4) << expected.laplace << ' ' << expected.scale;
  }
}

// On so fine a grid the distributions are the continuous ones, far below what can be seen.
TEST(RejectionSampler, LargeScalesAreSmooth) {
  const auto scale = Scale::at_least(0x1.37p43);
  PhiloxWords words({.key = {5}});
  RandomBits bits(words);
  std::vector<double> gaussian(50'000), laplace(50'000);
  for (auto& x : gaussian) {
    x = static_cast<double>(draw_discrete_gaussian(bits, scale)) / scale.value();
  }
  for (auto& x : laplace) {
    x = static_cast<double>(draw_discrete_laplace(bits, scale)) / scale.value();
  }
  EXPECT_LT(testing::kolmogorov_smirnov(gaussian, testing::normal_cdf), 1.95);
  EXPECT_LT(testing::kolmogorov_smirnov(laplace, testing::laplace_cdf), 1.95);
}

TEST(RejectionSampler, TheLowBitsOfLargeScalesAreUniform) {
  const auto scale = Scale::at_least(0x1.37p43);
  PhiloxWords words({.key = {6}});
  RandomBits bits(words);
  std::vector<int64_t> counts(16);
  for (int i = 0; i < 32'000; ++i)
    ++counts[static_cast<uint64_t>(draw_discrete_gaussian(bits, scale)) % 16];
  double statistic = 0;
  for (const auto count : counts)
    statistic += std::pow(static_cast<double>(count) - 2000, 2) / 2000;
  EXPECT_LT(statistic, 37.7);  // 15 degrees of freedom, p = 0.001
}

TEST(Scale, IsNeverBelowAndHasFewBits) {
  for (const double value : {0.25, 0.3, 1.0, 1.1, 3.5, 12345.678, 0x1.fffffffp23, 0x1p24 + 0.5,
                             123456789012.3, 0x1p46}) {
    const auto scale = Scale::at_least(value);
    EXPECT_GE(scale.value(), value);
    EXPECT_LE(scale.value(), value * (1 + 0x1p-23));
    EXPECT_TRUE(scale.shift == 0 || scale.numerator <= 1 << 24);
  }
  EXPECT_EQ(
      message_of<c10::ValueError>([] { Scale::at_least(0.2); }),
      "the scale of discrete noise, in grid units, must lie in [0.25, 7.03687e+13], but is 0.2");
}

TEST(RandomBits, BernoulliExpHasItsProbability) {
  PhiloxWords words({.key = {7}});
  RandomBits bits(words);
  for (const auto& [numerator, denominator] : {std::pair<uint128, uint128>{0, 3},
                                               {1, 3},
                                               {1, 1},
                                               {7, 3},
                                               {uint128{5} << 110, uint128{1} << 111}}) {
    constexpr int kDraws = 40'000;
    int yes = 0;
    for (int i = 0; i < kDraws; ++i) yes += bernoulli_exp(bits, numerator, denominator) ? 1 : 0;
    const double p = std::exp(-static_cast<double>(numerator) / static_cast<double>(denominator));
    EXPECT_NEAR(yes, kDraws * p, 4 * std::sqrt(kDraws * p * (1 - p)));
  }
}

TEST(RandomBits, BelowIsUniformForAnyBound) {
  PhiloxWords words({.key = {8}});
  RandomBits bits(words);
  for (const uint128 bound :
       {uint128{1}, uint128{3}, uint128{5} << 30, uint128{3} << 62, uint128{3} << 126}) {
    std::vector<double> seen(3);
    for (int i = 0; i < 3'000; ++i) {
      const auto number = bits.below(bound);
      ASSERT_LT(number, bound);
      if (bound > 1) ++seen[static_cast<size_t>(number / (bound / 3 + (bound % 3 != 0 ? 1 : 0)))];
    }
    if (bound == 1) continue;
    for (const double count : seen) EXPECT_NEAR(count, 1000, 4 * std::sqrt(1000.0));
  }
}

/// A source that is stuck.
struct StuckWords final : RandomWords {
  void fill(std::span<uint32_t> words) override { std::fill(words.begin(), words.end(), 0U); }
};

TEST(RandomBits, AStuckSourceIsRefusedNotWaitedFor) {
  StuckWords words;
  RandomBits bits(words);
  EXPECT_EQ(message_of([&] { draw_discrete_gaussian(bits, Scale::at_least(5)); }),
            "the source of random bits is broken: it repeats itself");
}

}  // namespace
}  // namespace torchlore::privacy
