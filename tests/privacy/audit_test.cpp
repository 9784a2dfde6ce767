#include "torchlore/privacy/audit.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/sgd.h>

#include <cmath>

#include "canaries.hpp"
#include "golden_rows.hpp"
#include "support/message.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

using testing::golden_rows;
using testing::message_of;
using testing::scores_of;
using testing::split;

constexpr double kEpsilon = 4;
constexpr double kDelta = 1e-5;
const AuditOptions kOptions{.delta = kDelta};

// tests/oracles/audit.py, by scipy.
TEST(ClopperPearson, EqualsScipy) {
  int seen = 0;
  for (const auto& row : golden_rows("audit.txt")) {
    if (row.size() != 4) continue;
    const auto bounds = clopper_pearson(static_cast<int64_t>(row[0]), static_cast<int64_t>(row[1]));
    EXPECT_NEAR(bounds.lower, row[2], 1e-9) << row[0] << " of " << row[1];
    EXPECT_NEAR(bounds.upper, row[3], 1e-9) << row[0] << " of " << row[1];
    ++seen;
  }
  EXPECT_EQ(seen, 60);
}

TEST(OneRunPValue, EqualsTheTheorem) {
  int seen = 0;
  for (const auto& row : golden_rows("audit.txt")) {
    if (row.size() != 6) continue;
    const double p = one_run_p_value(static_cast<int64_t>(row[0]), static_cast<int64_t>(row[1]),
                                     static_cast<int64_t>(row[2]), row[3], row[4]);
    EXPECT_NEAR(p, row[5], 1e-9 + 1e-6 * row[5]) << row[0] << ' ' << row[1] << ' ' << row[2];
    ++seen;
  }
  EXPECT_EQ(seen, 60);
}

/// The noise on the canaries comes from the same seed, so that a bound that holds in 95 of 100 runs holds in
/// all of these or fails in all.
struct Canaries : testing::Canaries {
  Canaries(int64_t count, uint64_t seed)
      : testing::Canaries(count, seed), noise(NoiseSource::fast_not_secure(seed)) {}

  NoiseSource noise;
};

/// One private step on the canaries, of length `size` each; the noisy gradient tells.
std::vector<double> private_step(const Canaries& canaries, double sigma, double size = 1) {
  const auto count = static_cast<int64_t>(canaries.included.size());
  torch::nn::Embedding model(torch::nn::EmbeddingOptions(count, 1));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(1.0));
  const auto dp = differentially_private(*model, {.noise_multiplier = sigma,
                                                  .dataset_size = count,
                                                  .expected_batch = static_cast<double>(count),
                                                  .noise = canaries.noise});
  TrainingStep step(optimizer, {.gradient = dp});
  step(at::tensor(canaries.tokens),
       [&](const at::Tensor& tokens) { return model->forward(tokens).squeeze(1) * size; });
  return scores_of(model->weight.grad());
}

/// The sum of what the canaries add, with noise of that size: a mechanism made by hand.
std::vector<double> by_hand(const Canaries& canaries, double added, double sigma) {
  auto sum = at::zeros({static_cast<int64_t>(canaries.included.size())}, at::kDouble);
  sum.index_fill_(0, at::tensor(canaries.tokens), added);
  add_gaussian_noise_({sum}, sigma, canaries.noise);
  return scores_of(sum);
}

// 200,000 canaries, each of which is a trial of the same mechanism: none has noise of another.
TEST(Audit, FindsHalfOfTheEpsilonOfAPrivateStepAndNoMoreThanAllOfIt) {
  const double sigma = gaussian_noise_multiplier(kEpsilon, kDelta);
  const Canaries canaries(200'000, 1);
  // Ten times as long as allowed: the step clips it.
  const auto [with, without] = split(private_step(canaries, sigma, 10), canaries);
  const auto audit = audit_canary(with, without, kOptions);
  EXPECT_LE(audit.epsilon, kEpsilon);
  EXPECT_GE(audit.epsilon, kEpsilon / 2);
  EXPECT_LE(audit.gaussian_epsilon, kEpsilon);
  EXPECT_GE(audit.gaussian_epsilon, 0.9 * kEpsilon);
}

TEST(Audit, OneRunNeverProvesMoreThanIsTrue) {
  const double sigma = gaussian_noise_multiplier(kEpsilon, kDelta);
  int above = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Canaries canaries(1000, seed);
    const auto scores = private_step(canaries, sigma);
    const double epsilon = audit_one_run(scores, canaries.included, 100, kOptions);
    above += epsilon > kEpsilon ? 1 : 0;
    EXPECT_GT(epsilon, 0.2) << seed;
  }
  EXPECT_EQ(above, 0);
}

TEST(Audit, ProvesNothingOfScoresThatSayNothing) {
  const Canaries canaries(1000, 3);
  auto scores = by_hand(canaries, 0, 1);
  EXPECT_LT(audit_one_run(scores, canaries.included, 100, kOptions), 0.5);
  const auto [with, without] = split(scores, canaries);
  EXPECT_LT(audit_canary(with, without, kOptions).epsilon, 0.5);
}

/// Both audits, of a mechanism that claims ε 4.
void expect_caught(const std::vector<double>& scores, const Canaries& canaries) {
  EXPECT_GT(audit_one_run(scores, canaries.included, 800, kOptions), kEpsilon);
  const auto [with, without] = split(scores, canaries);
  const auto audit = audit_canary(with, without, kOptions);
  EXPECT_GT(audit.epsilon, kEpsilon);
  EXPECT_GT(audit.gaussian_epsilon, kEpsilon);
}

TEST(Audit, CatchesGradientsThatAreNotClipped) {
  const double sigma = gaussian_noise_multiplier(kEpsilon, kDelta);
  const Canaries canaries(2000, 4);
  expect_caught(by_hand(canaries, 10, sigma), canaries);
}

TEST(Audit, CatchesNoiseDividedByTheBatch) {
  const double sigma = gaussian_noise_multiplier(kEpsilon, kDelta);
  const Canaries canaries(2000, 5);
  expect_caught(by_hand(canaries, 1, sigma / 1000), canaries);
}

// The same noise on two sums: what is in one only is their difference.
TEST(Audit, CatchesNoiseUsedAgain) {
  const double sigma = gaussian_noise_multiplier(kEpsilon, kDelta);
  const Canaries canaries(2000, 6);
  auto noise = at::zeros({2000}, at::kDouble);
  add_gaussian_noise_({noise}, sigma, canaries.noise);
  auto sum = at::zeros({2000}, at::kDouble);
  sum.index_fill_(0, at::tensor(canaries.tokens), 1.0);
  expect_caught(scores_of((sum + noise) - noise), canaries);
}

TEST(Audit, RefusesBadInput) {
  EXPECT_EQ(message_of([] { clopper_pearson(3, 2); }),
            "there must be 1 or more trials and 0 to that many successes, but there are 2 and 3");
  EXPECT_EQ(message_of([] { clopper_pearson(1, 2, 1); }),
            "confidence must lie in (0, 1), but is 1");
  EXPECT_EQ(message_of([] {
              audit_canary({1, 2, 3}, {1, 2, 3, 4});
            }),
            "an audit needs 4 or more scores with and without the canary, but got 3 and 4");
  EXPECT_EQ(message_of([] {
              audit_canary({1, 2, 3, 4}, {1, 2, 3, std::nan("")});
            }),
            "a score of an audit is NaN");
  EXPECT_EQ(message_of([] {
              audit_one_run({1, 2, 3}, {true, false, true}, 3);
            }),
            "guesses must be an even number from 2 to the number of canaries (3), but is 3");
  EXPECT_EQ(message_of([] {
              audit_one_run({1, 2, 3}, {true, false}, 2);
            }),
            "an audit got 3 scores of 2 canaries");
  EXPECT_EQ(message_of([] {
              audit_one_run({1, 2}, {true, false}, 2, {.delta = 1});
            }),
            "delta must lie in [0, 1), but is 1");
}

}  // namespace
}  // namespace torchlore
