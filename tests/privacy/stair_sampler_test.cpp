#include "../../src/privacy/noise/stair_sampler.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>

#include "../../src/privacy/noise/exp_interval.hpp"
#include "../../src/privacy/noise/noise_grid.hpp"
#include "noise_statistics.hpp"
#include "support/message.hpp"
#include "test_paths.hpp"

namespace torchlore::privacy {
namespace {

using kernels::kStairCells;
using kernels::kStairLanes;
using kernels::kStairWords;
using kernels::NoiseKernels;
using kernels::StairProposal;
using testing::message_of;

// One per shape of the table: sigma over the cell's width goes from 4 to 8.5.
const std::vector<double> kSigmas = {4,      5.3125,   7.99,        12,
                                     20.75,  1000.5,   123'456,     0x1.37p30,
                                     0x1p42, 0x1.7p42, 0x1.ffffp42, 0x1.0001p43};

std::vector<const NoiseKernels*> all_kernels() {
  std::vector<const NoiseKernels*> found;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (const auto* set = kernels::noise_kernels(name)) found.push_back(set);
  }
  return found;
}

TEST(ExpInterval, HoldsTheTruthAtEveryPrecision) {
  std::ifstream file(std::string(TORCHLORE_TEST_DATA) + "/exp_digits.txt");
  int rows = 0;
  for (std::string line; std::getline(file, line); ++rows) {
    std::istringstream text(line);
    std::array<uint64_t, 8> w{};
    for (auto& word : w) text >> word;
    for (const size_t limbs : {1, 2, 4}) {
      const auto bounds =
          exp_interval(uint128{w[0]} << 64 | w[1], uint128{w[2]} << 64 | w[3], limbs);
      FixedPoint truth(limbs);
      for (size_t i = 0; i < limbs; ++i) truth.set_limb(i, w[4 + i]);
      EXPECT_TRUE(bounds.lower <= truth) << line;  // the digits that follow make it larger still
      EXPECT_TRUE(FixedPoint(truth).step_up() <= bounds.upper || bounds.upper.limb(0) == 0) << line;
      EXPECT_TRUE(truth <= bounds.upper) << line;
      FixedPoint width = bounds.upper;
      width -= bounds.lower;
      EXPECT_LT(width.limb(limbs - 1), 1U << 14) << line;
      for (size_t i = 0; i + 1 < limbs; ++i) EXPECT_EQ(width.limb(i), 0U) << line;
    }
  }
  EXPECT_EQ(rows, 206);
}

// The bound on which exactness rests: target × exp(-y^2 / (2 sigma^2)) <= weight for every y of a cell.
TEST(StairSampler, WeightsAreNeverTooSmallAndSumUp) {
  for (const double sigma : kSigmas) {
    const auto scale = Scale::at_least(sigma);
    const StairSampler sampler(scale);
    const auto& weights = sampler.weights();
    EXPECT_EQ(std::accumulate(weights.begin(), weights.end(), uint64_t{0}), uint64_t{1} << 39);
    EXPECT_GE(weights[0], sampler.target());
    const int log2_width = 40 - sampler.lookup().shift;
    for (uint64_t j = 1; j < kStairCells; ++j) {
      const uint128 low = (uint128{j} << log2_width) << scale.shift;
      auto share = exp_interval(low * low, 2 * uint128{scale.numerator} * scale.numerator, 2).upper;
      share *= sampler.target();
      EXPECT_LE(share.whole() + 1, weights[j] + (j + 1 == kStairCells ? 1 : 0))
          << sigma << ' ' << j;
      if (static_cast<int32_t>(j) < sampler.lookup().first_slow) {
        EXPECT_LE(weights[j] - share.whole(), 2U) << sigma << ' ' << j;  // and hardly too large
      }
    }
    EXPECT_LE(static_cast<double>(weights[0] - sampler.target()),
              0x1p-26 * static_cast<double>(weights[0]));
  }
}

TEST(StairSampler, TheAliasTableHasExactlyTheWeights) {
  for (const double sigma : kSigmas) {
    const StairSampler sampler(Scale::at_least(sigma));
    const auto& lookup = sampler.lookup();
    std::array<uint64_t, kStairCells> found{};
    for (size_t column = 0; column < kStairCells; ++column) {
      found[column] += lookup.threshold[column];
      found[lookup.alias[column]] += (uint64_t{1} << 32) - lookup.threshold[column];
    }
    EXPECT_EQ(found, sampler.weights());
  }
}

// docs/discrete_noise.md proves a quarter of the margin; the largest error of the ends and of random
// places, with the 16 bits that the loop does not look at.
TEST(StairSampler, TheLoopsProbabilityIsWithinItsBound) {
  std::mt19937_64 random(1);
  for (const double sigma : kSigmas) {
    const StairSampler sampler(Scale::at_least(sigma));
    const auto& lookup = sampler.lookup();
    const long double s =
        std::ldexp(static_cast<long double>(Scale::at_least(sigma).value()), lookup.shift);
    const uint32_t mask =
        static_cast<uint32_t>((~uint64_t{0} << lookup.shift & 0xff'ffff'ffff) >> 16);
    for (const auto* set : all_kernels()) {
      long double worst = 0;
      for (uint32_t cell = 0; cell < static_cast<uint32_t>(lookup.first_slow); ++cell) {
        for (int round = 0; round < 20; ++round) {
          std::array<uint32_t, 16> cells{}, offsets{};
          std::array<float, 16> found{};
          cells.fill(cell);
          for (auto& offset : offsets) offset = random() & 0xff'ffff & mask;
          offsets[0] = 0;
          offsets[1] = mask;
          set->stair_probability(lookup, cells.data(), offsets.data(), found.data());
          for (size_t lane = 0; lane < 16; ++lane) {
            for (const long double low_bits : {0.0L, lookup.shift == 0 ? 65535.0L : 0.0L}) {
              const long double offset = offsets[lane] * 65536.0L + low_bits;
              const long double low = std::ldexp(static_cast<long double>(cell), 40);
              const long double truth = std::exp(-offset * (2 * low + offset) / (2 * s * s));
              worst = std::max(worst, std::abs(truth - static_cast<long double>(found[lane])));
            }
          }
        }
      }
      EXPECT_LT(worst, kernels::kStairMargin / 4) << sigma << ' ' << set->name;
    }
  }
}

struct Recorder {
  const StairSampler& sampler;
  uint32_t seed;
  int64_t asked = 0;
};

RandomBits& bits_of(std::unique_ptr<PhiloxWords>& words, std::unique_ptr<RandomBits>& bits,
                    uint32_t seed, int64_t index) {
  bits.reset();
  words = std::make_unique<PhiloxWords>(
      kernels::PhiloxCounter{.index = static_cast<uint64_t>(index) << 8, .step = 1, .key = {seed}});
  bits = std::make_unique<RandomBits>(*words);
  return *bits;
}

bool decide(void* pointer, const StairProposal& proposal, int64_t* y) {
  auto& recorder = *static_cast<Recorder*>(pointer);
  ++recorder.asked;
  std::unique_ptr<PhiloxWords> words;
  std::unique_ptr<RandomBits> bits;
  return recorder.sampler.decide(proposal, bits_of(words, bits, recorder.seed, proposal.index), y);
}

// The loop is only a short cut: whatever it keeps, the exact rule keeps, at any precision to begin with.
TEST(StairSampler, TheLoopDecidesAsTheExactRuleOnEveryInstructionSet) {
  constexpr int64_t kGroups = 500;
  uint32_t seed = 0;
  for (const double sigma : kSigmas) {
    const StairSampler sampler(Scale::at_least(sigma));
    std::vector<uint32_t> words(kGroups * kStairWords);
    PhiloxWords({.key = {++seed}}).fill(words);
    Recorder recorder{sampler, seed};
    std::vector<int64_t> expected;
    for (int64_t g = 0; g < kGroups; ++g) {
      for (int64_t lane = 0; lane < kStairLanes; ++lane) {
        const auto* w = words.data() + g * kStairWords + lane;
        const StairProposal proposal{{w[0], w[16], w[32]}, g * kStairLanes + lane};
        int64_t y = 0;
        const bool kept = decide(&recorder, proposal, &y);
        if (kept) expected.push_back(y);
        std::unique_ptr<PhiloxWords> more;
        std::unique_ptr<RandomBits> bits;
        int64_t again = 0;
        EXPECT_EQ(sampler.decide(proposal, bits_of(more, bits, seed, proposal.index), &again, 1),
                  kept);
        if (kept) {
          EXPECT_EQ(again, y);
        }
      }
    }
    for (const auto* set : all_kernels()) {
      recorder.asked = 0;
      std::vector<int64_t> found(words.size());
      const auto count =
          set->stair(sampler.lookup(), words.data(), kGroups, 0, decide, &recorder, found.data());
      found.resize(static_cast<size_t>(count));
      EXPECT_EQ(found, expected) << sigma << ' ' << set->name;
      EXPECT_LT(recorder.asked, 20);  // the short cut is one: 8,000 proposals
    }
  }
}

// Coins that lie at the probability itself, so that the loop must ask.
TEST(StairSampler, TheLoopAsksWhereItCannotKnow) {
  const StairSampler sampler(Scale::at_least(0x1.37p42));
  const auto& lookup = sampler.lookup();
  std::mt19937_64 random(2);
  std::vector<uint32_t> words(kStairWords);
  for (size_t lane = 0; lane < 16; ++lane) {
    std::array<uint32_t, 16> cells{}, offsets{};
    std::array<float, 16> p{};
    // Column 5 with a coin of 0 is cell 5, unless the column never keeps itself.
    ASSERT_GT(lookup.threshold[5] + (lookup.alias[5] == 5 ? 1U : 0U), 0U);
    cells.fill(5);
    offsets[0] = random() & 0xff'ffff;
    all_kernels()[0]->stair_probability(lookup, cells.data(), offsets.data(), p.data());
    words[lane] = offsets[0] << 8 | 5;
    words[32 + lane] = static_cast<uint32_t>(p[0] * 65536) << 16 | (random() & 0xffff);
  }
  for (const auto* set : all_kernels()) {
    Recorder recorder{sampler, 9};
    std::array<int64_t, 16> out{};
    set->stair(lookup, words.data(), 1, 0, decide, &recorder, out.data());
    EXPECT_EQ(recorder.asked, 16) << set->name;
  }
}

TEST(StairSampler, TheTailIsReachableAndPracticallyNeverKept) {
  const StairSampler sampler(Scale::at_least(0x1.37p42));
  PhiloxWords words({.key = {3}});
  RandomBits bits(words);
  ASSERT_EQ(sampler.weights()[127], 1U);
  ASSERT_EQ(sampler.lookup().threshold[127], 1U);  // by the coin 0
  for (int i = 0; i < 100; ++i) {
    int64_t y = 0;
    EXPECT_FALSE(sampler.decide({{127, 0, 0xffff'ffff}, 0}, bits, &y));
    EXPECT_FALSE(sampler.decide({{127, 0, 0}, 0}, bits, &y));  // U is below 2^-16, still far above
  }
}

std::vector<int64_t> drawn(const Scale& sigma, size_t count, uint64_t seed) {
  std::vector<int64_t> numbers(count);
  const NoiseDraw draw(NoiseSource::fast_not_secure(seed));
  StairSampler(sigma).fill(numbers, draw, 0);
  return numbers;
}

TEST(StairSampler, DrawsWithTheExactProbabilities) {
  int checked = 0;
  for (const auto& expected : testing::discrete_distributions()) {
    if (expected.laplace || expected.scale < StairSampler::kLeast) continue;
    ++checked;
    const auto numbers = drawn(Scale::at_least(expected.scale), 4'000'000, 20'260'302);
    EXPECT_LT(testing::surprise(numbers, expected), 4) << expected.scale;
  }
  EXPECT_EQ(checked, 4);
}

TEST(StairSampler, LargeScalesAreNormalDownToTheTailAndTheLowBits) {
  const auto sigma = Scale::at_least(0x1.37p42);
  const auto numbers = drawn(sigma, 4'000'000, 20'260'303);
  std::vector<double> values;
  for (const auto y : numbers) values.push_back(static_cast<double>(y) / sigma.value());
  double fourth = 0, neighbours = 0, far = 0;
  std::array<double, 32> low{};
  for (size_t i = 0; i < values.size(); ++i) {
    fourth += std::pow(values[i], 4);
    if (i > 0) neighbours += values[i] * values[i - 1];
    far += std::abs(values[i]) > 4 ? 1 : 0;
    ++low[static_cast<uint64_t>(numbers[i]) % 32];
  }
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(fourth / n, 3, 4 * std::sqrt(96 / n));
  EXPECT_NEAR(neighbours / n, 0, 4 / std::sqrt(n));
  EXPECT_NEAR(far, n * 6.334248e-5, 4 * std::sqrt(n * 6.334248e-5));
  for (const double count : low) EXPECT_NEAR(count, n / 32, 4.5 * std::sqrt(n / 32));
  EXPECT_LT(testing::kolmogorov_smirnov(std::move(values), testing::normal_cdf), 1.95);
}

// A stream may be cut anywhere: each part's numbers are its own, and parts do not depend on each other.
TEST(StairSampler, PartsAreIndependentStreams) {
  const StairSampler sampler(Scale::at_least(1000));
  const NoiseDraw draw(NoiseSource::fast_not_secure(5));
  std::vector<int64_t> one(10'000), again(10'000), other(10'000), shorter(777);
  sampler.fill(one, draw, 0);
  sampler.fill(other, draw, 1);
  sampler.fill(again, draw, 0);
  sampler.fill(shorter, draw, 0);
  EXPECT_EQ(one, again);
  EXPECT_NE(one, other);
  double correlation = 0;
  for (size_t i = 0; i < one.size(); ++i)
    correlation += static_cast<double>(one[i] * other[i]) / 1e6;
  EXPECT_LT(std::abs(correlation), 4 * std::sqrt(10'000.0));
  one.resize(640);  // whole groups of proposals
  shorter.resize(640);
  EXPECT_EQ(one, shorter);
}

TEST(StairSampler, RefusesAScaleOutOfRange) {
  EXPECT_EQ(message_of<c10::ValueError>([] { StairSampler(Scale::at_least(2)); }),
            "sigma of the stair sampler must lie in [4, 9.34585e+12], but is 2");
}

// What pays for rounding the values: the noise is 2^-16 wider than asked for, and the unit at most 2^-42 of it.
TEST(NoiseGrid, IsFineAndRaisesTheNoise) {
  for (const double stddev : {1.0, 1.999999, 0.3, 12345.6, 1e-200, 1e200}) {
    const auto grid = NoiseGrid::of(stddev);
    EXPECT_LE(grid.unit(), stddev * 0x1p-42);
    EXPECT_GT(grid.unit(), stddev * 0x1p-43);
    const double drawn = grid.scale.value() * grid.unit() / stddev;
    EXPECT_GE(drawn, 1 + 0x1p-16);
    EXPECT_LT(drawn, 1 + 0x1.1p-16);
    EXPECT_LE(grid.scale.value(), StairSampler::kMost);
  }
}

TEST(NoiseKernels, NormalsAreBoxMullerOnEveryInstructionSet) {
  for (const auto* set : all_kernels()) {
    std::vector<float> found(6'400);
    std::vector<uint32_t> words(6'400);
    set->normal(found.data(), 100, {.key = {8}});
    kernels::philox_kernels().fill(words.data(), 100, {.key = {8}});
    for (size_t i = 0; i < words.size(); i += 32) {
      for (size_t lane = 0; lane < 16; ++lane) {
        const double u = (words[i + lane] + 0.5) * 0x1p-32;
        const double turn = words[i + 16 + lane] * 0x1p-32;
        const double radius = std::sqrt(-2 * std::log(u));
        EXPECT_NEAR(found[i + lane], radius * std::cos(2 * M_PI * turn), 2e-6) << set->name;
        EXPECT_NEAR(found[i + 16 + lane], radius * std::sin(2 * M_PI * turn), 2e-6) << set->name;
      }
    }
  }
}

TEST(NoiseKernels, ManyNormalsAreNormal) {
  std::vector<float> floats(2'000'000);
  kernels::noise_kernels().normal(floats.data(), static_cast<int64_t>(floats.size()) / 64,
                                  {.key = {10}});
  double far = 0;
  for (const float x : floats) far += std::abs(x) > 4 ? 1 : 0;
  EXPECT_NEAR(far, 2e6 * 6.334248e-5, 4 * std::sqrt(2e6 * 6.334248e-5));
  EXPECT_LT(testing::kolmogorov_smirnov(std::vector<double>(floats.begin(), floats.end()),
                                        testing::normal_cdf),
            1.95);
}

}  // namespace
}  // namespace torchlore::privacy
