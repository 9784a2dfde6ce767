#include "torchlore/core/philox.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/PhiloxRNGEngine.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;
using Block = std::array<uint32_t, 4>;

constexpr uint64_t kSeed = 20'110'212;

// The known answers that the authors publish with Random123 (kat_vectors, philox4x32 10). The third
// counter and key are the digits of pi.
TEST(Philox, GivesTheKnownAnswersOfItsAuthors) {
  constexpr uint32_t kOnes = 0xFFFF'FFFF;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, EqualsLibTorchsGenerator) {
  for (uint64_t seed : {uint64_t{1}, uint64_t{0xDEAD'BEEF'0123'4567}}) {
    for (uint64_t step : {0, 7}) {
      at::philox_engine theirs(seed, uint64_t{42} << 32 | step, 5);
      const PhiloxStream ours(seed, static_cast<int64_t>(step), 42);
      for (uint64_t block = 5; block < 105; ++block) {
        for (const uint32_t word : ours.block(block)) EXPECT_EQ(word, theirs());
      }
    }
  }
}

TEST(Philox, IsAConstantExpression) {
  static_assert(philox4x32({0, 0, 0, 0}, {0, 0})[0] == 0x6627e8d5);
}

TEST(PhiloxStream, RefusesWhatTheCounterCannotHold) {
  EXPECT_EQ(message_of<c10::ValueError>([] { PhiloxStream(1, -1); }),
            "step must lie in [0, 2^32), but is -1");
  EXPECT_EQ(message_of<c10::ValueError>([] { PhiloxStream(1, 0, int64_t{1} << 32); }),
            "stream must lie in [0, 2^32), but is 4294967296");
  EXPECT_NO_THROW(PhiloxStream(1, (int64_t{1} << 32) - 1, (int64_t{1} << 32) - 1));
}

TEST(PhiloxStream, StreamsStepsSeedsAndBlocksDiffer) {
  std::set<Block> seen;
  for (uint64_t seed : {0, 1}) {
    for (int64_t step : {0, 1}) {
      for (int64_t stream : {0, 1}) {
        for (uint64_t block : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
          seen.insert(PhiloxStream(seed, step, stream).block(block));
        }
      }
    }
  }
  EXPECT_EQ(seen.size(), 24U);
}

/// The largest distance between the samples' distribution and the right one (Kolmogorov–Smirnov),
/// times √n: above 1.95 with probability 0.001 if the samples are right.
template <typename F>
double kolmogorov_smirnov(std::vector<double> samples, const F& cdf) {
  std::sort(samples.begin(), samples.end());
  const auto n = static_cast<double>(samples.size());
  double distance = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const double p = cdf(samples[i]);
    distance =
        std::max({distance, p - static_cast<double>(i) / n, static_cast<double>(i + 1) / n - p});
  }
  return distance * std::sqrt(n);
}

std::vector<double> samples_of(uint64_t count, const std::function<double(uint64_t)>& draw) {
  std::vector<double> samples(count);
  for (uint64_t i = 0; i < count; ++i) samples[i] = draw(i);
  return samples;
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double uniform_cdf(double x) { return x; }

constexpr uint64_t kSamples = 200'000;
constexpr double kLimit = 1.95;

TEST(PhiloxStream, UniformIsUniform) {
  const PhiloxStream stream(kSeed);
  const auto floats = samples_of(kSamples, [&](auto i) { return stream.uniform<float>(i); });
  const auto doubles = samples_of(kSamples, [&](auto i) { return stream.uniform<double>(i); });
  EXPECT_LT(kolmogorov_smirnov(floats, uniform_cdf), kLimit);
  EXPECT_LT(kolmogorov_smirnov(doubles, uniform_cdf), kLimit);
  EXPECT_GE(*std::min_element(floats.begin(), floats.end()), 0);
  EXPECT_LT(*std::max_element(floats.begin(), floats.end()), 1);
}

TEST(PhiloxStream, NormalIsNormal) {
  const PhiloxStream stream(kSeed);
  const auto floats = samples_of(kSamples, [&](auto i) { return stream.normal<float>(i); });
  const auto doubles = samples_of(kSamples, [&](auto i) { return stream.normal<double>(i); });
  EXPECT_LT(kolmogorov_smirnov(floats, normal_cdf), kLimit);
  EXPECT_LT(kolmogorov_smirnov(doubles, normal_cdf), kLimit);
}

// The two numbers of one Box–Muller pair, and numbers of neighbouring streams, must not go
// together: a correlation of n independent pairs is normal with deviation 1/√n.
TEST(PhiloxStream, NeighboursAreUncorrelated) {
  const PhiloxStream a(kSeed, 0, 0), next_stream(kSeed, 0, 1), next_step(kSeed, 1, 0);
  double in_pair = 0, across_streams = 0, across_steps = 0;
  for (uint64_t i = 0; i < kSamples; ++i) {
    in_pair += a.normal<double>(2 * i) * a.normal<double>(2 * i + 1);
    across_streams += a.normal<double>(i) * next_stream.normal<double>(i);
    across_steps += a.normal<double>(i) * next_step.normal<double>(i);
  }
  const double limit = 4 * std::sqrt(static_cast<double>(kSamples));
  EXPECT_LT(std::abs(in_pair), limit);
  EXPECT_LT(std::abs(across_streams), limit);
  EXPECT_LT(std::abs(across_steps), limit);
}

TEST(PhiloxStream, ExtremeWordsGiveFiniteNumbers) {
  constexpr uint32_t kOnes = 0xFFFF'FFFF;
  for (uint64_t place : {0, 1}) {
    for (const Block& words : {Block{0, 0, 0, 0}, Block{kOnes, kOnes, kOnes, kOnes}}) {
      EXPECT_TRUE(std::isfinite(PhiloxStream::normal_of<float>(words, place)));
      EXPECT_TRUE(std::isfinite(PhiloxStream::normal_of<double>(words, place)));
      EXPECT_LT(PhiloxStream::uniform_of<float>(words, place), 1.0F);
      EXPECT_LT(PhiloxStream::uniform_of<double>(words, place), 1.0);
    }
  }
  EXPECT_NEAR(PhiloxStream::normal_of<float>({0, 0, 0, 0}, 0), 6.76, 0.01);
  EXPECT_NEAR(PhiloxStream::normal_of<double>({0, 0, 0, 0}, 0), 8.57, 0.01);
}

TEST(PhiloxEngine, GivesTheWordsOfItsStreamInOrder) {
  const PhiloxStream stream(kSeed, 3, 4);
  PhiloxEngine engine(stream);
  for (uint64_t block = 0; block < 4; ++block) {
    const auto words = stream.block(block);
    EXPECT_EQ(engine(), uint64_t{words[1]} << 32 | words[0]);
    EXPECT_EQ(engine(), uint64_t{words[3]} << 32 | words[2]);
  }
}

/// Pearson's statistic for equal expectations.
double chi_squared(const std::vector<int64_t>& counts) {
  const auto total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const double expected = static_cast<double>(total) / static_cast<double>(counts.size());
  double sum = 0;
  for (const auto count : counts)
    sum += std::pow(static_cast<double>(count) - expected, 2) / expected;
  return sum;
}

TEST(PhiloxEngine, StartsAtAnyNumber) {
  PhiloxEngine whole{PhiloxStream(kSeed)};
  for (uint64_t first = 0; first < 6; ++first) {
    PhiloxEngine later(PhiloxStream(kSeed), first);
    EXPECT_EQ(later(), whole());
  }
}

TEST(PhiloxEngine, BoundedNumbersAreUniform) {
  PhiloxEngine engine{PhiloxStream(kSeed)};
  std::vector<int64_t> counts(10);
  for (int i = 0; i < 100'000; ++i) ++counts[engine.below(10)];
  EXPECT_LT(chi_squared(counts), 27.88);  // 9 degrees of freedom, p = 0.001
}

// With a bound of 3/4 of 2^64 a draw without rejection would give multiples of 3 twice as often.
TEST(PhiloxEngine, BoundedNumbersAreUnbiasedForHugeBounds) {
  PhiloxEngine engine{PhiloxStream(kSeed)};
  std::vector<int64_t> counts(3);
  for (int i = 0; i < 30'000; ++i) ++counts[engine.below(uint64_t{3} << 62) % 3];
  EXPECT_LT(chi_squared(counts), 13.82);  // 2 degrees of freedom, p = 0.001
}

TEST(PhiloxEngine, RefusesAnEmptyRange) {
  PhiloxEngine engine{PhiloxStream(kSeed)};
  EXPECT_EQ(message_of<c10::ValueError>([&] { engine.below(0); }),
            "a number below 0 was asked for; the bound must be 1 or more");
  EXPECT_EQ(engine.below(1), 0U);
}

TEST(PhiloxPermutation, HoldsEachNumberOnce) {
  for (int64_t n : {0, 1, 2, 1'000}) {
    auto order = philox_permutation(kSeed, 5, n);
    EXPECT_EQ(order, philox_permutation(kSeed, 5, n));
    std::sort(order.begin(), order.end());
    std::vector<int64_t> expected(static_cast<size_t>(n));
    std::iota(expected.begin(), expected.end(), int64_t{0});
    EXPECT_EQ(order, expected);
  }
  EXPECT_NE(philox_permutation(kSeed, 5, 100), philox_permutation(kSeed, 6, 100));
  EXPECT_NE(philox_permutation(kSeed, 5, 100), philox_permutation(kSeed + 1, 5, 100));
}

TEST(PhiloxPermutation, AllOrdersAreEquallyLikely) {
  std::map<std::vector<int64_t>, int64_t> seen;
  for (int64_t epoch = 0; epoch < 24'000; ++epoch) ++seen[philox_permutation(kSeed, epoch, 4)];
  std::vector<int64_t> counts;
  for (const auto& [order, count] : seen) counts.push_back(count);
  ASSERT_EQ(counts.size(), 24U);
  EXPECT_LT(chi_squared(counts), 49.73);  // 23 degrees of freedom, p = 0.001
}

TEST(PhiloxPermutation, RefusesANegativeLength) {
  EXPECT_EQ(message_of<c10::ValueError>([] { philox_permutation(1, 0, -1); }),
            "a permutation needs a length of 0 or above, but n is -1");
}

TEST(PhiloxFill, ElementsAreTheStreamsNumbers) {
  const PhiloxStream stream(kSeed, 1, 2);
  const auto floats = philox_normal_(at::empty({3, 7}), stream, 0, 1, 5).flatten();
  const auto doubles = philox_uniform_(at::empty({3, 7}, at::kDouble), stream, 0, 1, 5).flatten();
  for (int64_t i = 0; i < 21; ++i) {
    EXPECT_EQ(floats[i].item<float>(), stream.normal<float>(static_cast<uint64_t>(i + 5)));
    EXPECT_EQ(doubles[i].item<double>(), stream.uniform<double>(static_cast<uint64_t>(i + 5)));
  }
}

TEST(PhiloxFill, DoesNotDependOnThreads) {
  const PhiloxStream stream(kSeed);
  const auto threads = at::get_num_threads();
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    at::set_num_threads(1);
    const auto one = philox_normal_(at::empty({200'003}, dtype), stream, 0, 1, 1);
    for (const int many : {2, 3, 7}) {
      at::set_num_threads(many);
      EXPECT_TRUE(same(philox_normal_(at::empty({200'003}, dtype), stream, 0, 1, 1), one));
    }
  }
  at::set_num_threads(threads);
}

TEST(PhiloxFill, DoesNotDependOnStrides) {
  const PhiloxStream stream(kSeed);
  const auto plain = philox_uniform_(at::empty({5, 6}), stream);
  const auto transposed = philox_uniform_(at::empty({6, 5}).t(), stream);
  const auto strided = philox_uniform_(at::zeros({5, 12}).slice(1, 0, 12, 2), stream);
  EXPECT_TRUE(same(transposed, plain));
  EXPECT_TRUE(same(strided, plain));
}

TEST(PhiloxFill, PartsEqualTheWhole) {
  const PhiloxStream stream(kSeed);
  const auto whole = philox_normal_(at::empty({1'000}), stream);
  const auto first = philox_normal_(at::empty({333}), stream);
  const auto rest = philox_normal_(at::empty({667}), stream, 0, 1, 333);
  EXPECT_TRUE(same(at::cat({first, rest}), whole));
}

TEST(PhiloxFill, LowPrecisionRoundsTheFloat32Numbers) {
  const PhiloxStream stream(kSeed);
  const auto wide = philox_normal_(at::empty({100}), stream, 1, 2);
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    EXPECT_TRUE(same(philox_normal_(at::empty({100}, dtype), stream, 1, 2), wide.to(dtype)));
  }
}

TEST(PhiloxFill, ScalesAndShifts) {
  const PhiloxStream stream(kSeed);
  const auto uniform = philox_uniform_(at::empty({10'000}), stream, -2, 3);
  EXPECT_GE(uniform.min().item<float>(), -2);
  EXPECT_LT(uniform.max().item<float>(), 3);
  EXPECT_NEAR(uniform.mean().item<float>(), 0.5, 0.06);
  const auto normal = philox_normal_(at::empty({10'000}, at::kDouble), stream, 4, 0.5);
  EXPECT_NEAR(normal.mean().item<double>(), 4, 0.02);
  EXPECT_NEAR(normal.std().item<double>(), 0.5, 0.02);
}

TEST(PhiloxFill, FillsALeafAndAnEmptyTensor) {
  auto leaf = at::empty({3}).requires_grad_();
  EXPECT_TRUE(philox_normal_(leaf, PhiloxStream(1)).is_same(leaf));
  EXPECT_EQ(philox_normal_(at::empty({0, 3}), PhiloxStream(1)).numel(), 0);
}

TEST(PhiloxFill, RefusesWhatItCannotFill) {
  const PhiloxStream stream(1);
  EXPECT_EQ(message_of<c10::TypeError>([&] { philox_normal_(at::empty({2}, at::kLong), stream); }),
            "expected a float16, bfloat16, float32 or float64 tensor, but got Long");
  EXPECT_EQ(message_of<c10::ValueError>([&] { philox_uniform_(at::empty({2}), stream, 1, 0); }),
            "expected finite low <= high, but got [1, 0)");
  EXPECT_EQ(message_of<c10::ValueError>([&] { philox_normal_(at::empty({2}), stream, 0, -1); }),
            "stddev must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(message_of<c10::ValueError>([&] { philox_normal_(at::empty({2}), stream, NAN); }),
            "mean must be finite, but is nan");
  EXPECT_EQ(message_of<c10::ValueError>([&] { philox_normal_(at::empty({2}), stream, 0, 1, -3); }),
            "first must lie in [0, 9223372036854775805], but is -3");
}

}  // namespace
}  // namespace torchlore
