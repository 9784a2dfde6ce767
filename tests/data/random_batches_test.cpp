#include "torchlore/data/random_batches.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/data/dataloader.h>
#include <torch/data/datasets/base.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/data/fixed_size_sampler.hpp"
#include "torchlore/data/poisson_sampler.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using Indices = std::vector<size_t>;

/// The batches of the rest of a pass.
std::vector<Indices> pass(RandomBatches& sampler) {
  std::vector<Indices> all;
  sampler.reset();
  while (auto batch = sampler.next()) all.push_back(batch->indices());
  sampler.consume(static_cast<int64_t>(all.size()));
  return all;
}

/// How often each example was drawn, and how often each size occurred.
struct Counts {
  std::vector<double> of_example;
  std::map<size_t, double> of_size;
  double together = 0;  // examples 0 and 1 in one batch
};

Counts count(RandomBatches& sampler) {
  Counts counts{std::vector<double>(static_cast<size_t>(sampler.size())), {}, 0};
  for (const auto& batch : pass(sampler)) {
    EXPECT_TRUE(std::is_sorted(batch.begin(), batch.end()));
    EXPECT_TRUE(std::adjacent_find(batch.begin(), batch.end()) == batch.end());
    for (const auto index : batch) ++counts.of_example.at(index);
    ++counts.of_size[batch.size()];
    counts.together += batch.size() >= 2 && batch[0] == 0 && batch[1] == 1 ? 1 : 0;
  }
  return counts;
}

double binomial(int n, int k, double p) {
  return std::exp(std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1)) *
         std::pow(p, k) * std::pow(1 - p, n - k);
}

constexpr int64_t kSteps = 100'000;

// Of 1e5 steps; limits at five standard deviations.
class Poisson : public ::testing::TestWithParam<std::optional<uint64_t>> {};

TEST_P(Poisson, TakesEachExampleByItself) {
  PoissonSampler sampler(
      10, {.expected_batch = 1.5, .steps_per_pass = kSteps, .seed_not_secure = GetParam()});
  EXPECT_DOUBLE_EQ(sampler.sample_rate(), 0.15);
  const auto counts = count(sampler);
  const auto near = [](double seen, double p) {
    EXPECT_NEAR(seen, kSteps * p, 5 * std::sqrt(kSteps * p * (1 - p)) + 1) << p;
  };
  for (const double seen : counts.of_example) near(seen, 0.15);
  near(counts.together, 0.15 * 0.15);
  for (int size = 0; size <= 6; ++size) {
    const auto found = counts.of_size.find(static_cast<size_t>(size));
    near(found == counts.of_size.end() ? 0 : found->second, binomial(10, size, 0.15));
  }
  EXPECT_GT(counts.of_size.at(0), 0);  // empty batches are batches
}

INSTANTIATE_TEST_SUITE_P(Sources, Poisson, ::testing::Values(std::nullopt, 7));

TEST(PoissonSampler, TakesAllAtRateOne) {
  PoissonSampler sampler(4, {.expected_batch = 4});
  EXPECT_EQ(pass(sampler), (std::vector<Indices>{{0, 1, 2, 3}}));
}

class FixedSize : public ::testing::TestWithParam<std::optional<uint64_t>> {};

TEST_P(FixedSize, TakesEachSetAlike) {
  FixedSizeSampler sampler(6,
                           {.batch = 3, .steps_per_pass = kSteps, .seed_not_secure = GetParam()});
  std::map<Indices, double> seen;
  for (auto& batch : pass(sampler)) ++seen[batch];
  EXPECT_EQ(seen.size(), 20u);  // of 6 choose 3
  for (const auto& [batch, times] : seen) {
    EXPECT_NEAR(times, kSteps / 20.0, 5 * std::sqrt(kSteps * 0.05 * 0.95));
  }
}

INSTANTIATE_TEST_SUITE_P(Sources, FixedSize, ::testing::Values(std::nullopt, 7));

TEST(FixedSizeSampler, TakesAllOfIt) {
  FixedSizeSampler sampler(4, {.batch = 4, .steps_per_pass = 2});
  EXPECT_EQ(pass(sampler), (std::vector<Indices>{{0, 1, 2, 3}, {0, 1, 2, 3}}));
}

TEST(RandomBatches, APassHoldsTheDataSetOnceOnAverage) {
  EXPECT_EQ(PoissonSampler(60'000, {.expected_batch = 256}).steps_per_pass(), 235);
  EXPECT_EQ(FixedSizeSampler(10, {.batch = 5}).steps_per_pass(), 2);
}

TEST(RandomBatches, TwoSecureSamplersDiffer) {
  PoissonSampler a(1000, {.expected_batch = 500}), b(1000, {.expected_batch = 500});
  EXPECT_NE(a.next()->indices(), b.next()->indices());
}

TEST(RandomBatches, IteratesOverDataInMemory) {
  PoissonSampler sampler(8, {.expected_batch = 2, .steps_per_pass = 50, .seed_not_secure = 3});
  PoissonSampler same(8, {.expected_batch = 2, .steps_per_pass = 50, .seed_not_secure = 3});
  const auto data = at::arange(16).reshape({8, 2});
  const auto target = at::arange(8) * 10;
  int64_t steps = 0;
  for (int epoch = 0; epoch < 2; ++epoch) {
    for (auto& [x, y] : sampler.batches(std::tuple(data, target))) {
      if (steps % 50 == 0) same.reset();
      const auto indices = same.next()->tensor();
      EXPECT_TRUE(testing::same(x, data.index_select(0, indices)));
      EXPECT_TRUE(testing::same(y, indices * 10));
      EXPECT_EQ(sampler.consumed(), ++steps);
    }
  }
  EXPECT_EQ(steps, 100);
}

/// A dataset whose examples are their own indices.
struct IndexDataset : torch::data::datasets::BatchDataset<IndexDataset, Indices> {
  Indices get_batch(c10::ArrayRef<size_t> indices) override { return indices.vec(); }
  std::optional<size_t> size() const override { return 20; }
};

// The loader takes an empty request for a mistake; these are none.
TEST(RandomBatches, GoesThroughALoaderWithEmptyBatchesToo) {
  const PoissonSamplerOptions options{
      .expected_batch = 1, .steps_per_pass = 40, .seed_not_secure = 5};
  PoissonSampler same(20, options);
  for (const size_t workers : {0, 2}) {
    PoissonSampler sampler(20, options);
    auto loader = torch::data::make_data_loader(IndexDataset(), sampler,
                                                torch::data::DataLoaderOptions(1).workers(workers));
    auto again = PoissonSampler(20, options);
    auto expected = pass(again);
    size_t i = 0;
    int empty = 0;
    for (auto& batch : *loader) {
      EXPECT_EQ(batch, expected.at(i++));
      empty += batch.empty() ? 1 : 0;
      sampler.consume();
    }
    EXPECT_EQ(i, 40u);
    EXPECT_GT(empty, 0);
    EXPECT_EQ(sampler.consumed(), 40);
  }
}

TEST(RandomBatches, ResumesWhatWasNotTrainedOn) {
  const PoissonSamplerOptions options{
      .expected_batch = 5, .steps_per_pass = 10, .seed_not_secure = 1};
  PoissonSampler whole(20, options), first(20, options);
  const auto expected = pass(whole);
  for (int i = 0; i < 6; ++i) first.next();  // read ahead
  first.consume(4);
  PoissonSampler second(20, {.expected_batch = 5, .steps_per_pass = 10, .seed_not_secure = 2});
  second.load_state_dict(first.state_dict());
  EXPECT_EQ(pass(second), std::vector<Indices>(expected.begin() + 4, expected.end()));
  EXPECT_EQ(second.consumed(), 10);
}

TEST(RandomBatches, KeepsOnlyThePositionOfASecureSampler) {
  PoissonSampler sampler(1000, {.expected_batch = 500});
  const auto drawn = sampler.next()->indices();
  sampler.consume();
  const auto state = sampler.state_dict();
  EXPECT_EQ(state.count("seed"), 0u);
  PoissonSampler again(1000, {.expected_batch = 500});
  again.load_state_dict(state);
  EXPECT_EQ(again.consumed(), 1);
  EXPECT_NE(again.next()->indices(), drawn);
}

TEST(RandomBatches, RefusesBadInput) {
  EXPECT_EQ(message_of([] { PoissonSampler(0, {.expected_batch = 1}); }),
            "the size of the dataset must be 1 or more, but is 0");
  EXPECT_EQ(
      message_of([] { PoissonSampler(10, {}); }),
      "expected_batch must lie above 0 and be at most the size of the dataset (10), but is 0");
  EXPECT_EQ(
      message_of([] { PoissonSampler(10, {.expected_batch = 11}); }),
      "expected_batch must lie above 0 and be at most the size of the dataset (10), but is 11");
  EXPECT_EQ(message_of([] { FixedSizeSampler(10, {.batch = -1}); }),
            "batch must lie above 0 and be at most the size of the dataset (10), but is -1");
  EXPECT_EQ(message_of([] { PoissonSampler(10, {.expected_batch = 1, .steps_per_pass = -1}); }),
            "steps_per_pass must be 0 or more, but is -1");
  PoissonSampler sampler(10, {.expected_batch = 1});
  EXPECT_EQ(message_of([&] { sampler.consume(); }),
            "cannot consume 1 steps: 0 are drawn and not yet consumed");
  EXPECT_EQ(message_of([&] {
              sampler.batches(at::zeros({9, 2}));
            }),
            "the sampler is for 10 examples and cannot change to 9; make a new one");
  EXPECT_EQ(message_of([&] { sampler.reset(9); }),
            "the sampler is for 10 examples and cannot change to 9; make a new one");
}

TEST(RandomBatches, RefusesTheStateOfAnotherSampler) {
  PoissonSampler sampler(10, {.expected_batch = 2});
  const FixedSizeSampler fixed(10, {.batch = 2});
  EXPECT_EQ(
      message_of([&] { sampler.load_state_dict(fixed.state_dict()); }),
      "the saved sampler drew batches of a fixed size, 2 of 10 examples; this one draws Poisson "
      "samples, 2 of 10: what was spent would be accounted for wrongly; resume with "
      "the saved settings");
  const PoissonSampler seeded(10, {.expected_batch = 2, .seed_not_secure = 1});
  EXPECT_EQ(
      message_of([&] { sampler.load_state_dict(seeded.state_dict()); }),
      "the saved sampler was not secure (it had a seed), and this one is not of that kind; set "
      "seed_not_secure as it was");
}

}  // namespace
}  // namespace torchlore
