#include "torchlore/privacy/pld.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "golden_rows.hpp"
#include "support/message.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

using testing::golden_rows;
using testing::message_of;

PrivacyLedger run(double noise_multiplier, double sample_rate, int64_t steps) {
  return PrivacyLedger({{noise_multiplier, sample_rate, steps}});
}

PrivacyEvent laplace(double noise_multiplier, int64_t steps, double sample_rate = 1) {
  return {.noise_multiplier = noise_multiplier,
          .sample_rate = sample_rate,
          .steps = steps,
          .noise = Noise::laplace};
}

TEST(PldEpsilon, PublishedValues) {
  EXPECT_NEAR(pld_epsilon(run(1.5, 0.04, 2249), 1e-5, {.interval = 1e-4}), 6.767051, 1e-6);
  EXPECT_NEAR(pld_epsilon(run(0.7, 0.01, 120), 1e-5), 2.4612381, 1e-4);
  EXPECT_NEAR(pld_delta(run(std::sqrt(3.0), 1, 3), 1), 0.126936, 1e-6);
  EXPECT_NEAR(pld_delta(run(0.5, 0.2, 3), 1), 0.15594, 1e-5);
}

// tests/oracles/accountants.py: dp-accounting's pessimistic estimate on the same grid.
TEST(PldEpsilon, EqualsDpAccountingOnRandomRuns) {
  const auto rows = golden_rows("accountants.txt");
  ASSERT_EQ(rows.size(), 500u);
  for (const auto& row : rows) {
    const double epsilon = pld_epsilon(run(row[0], row[1], static_cast<int64_t>(row[2])), row[3]);
    EXPECT_NEAR(epsilon, row[6], 1e-6) << row[0] << ' ' << row[1] << ' ' << row[2] << ' ' << row[3];
  }
}

// With noise of Laplace what is lost is bounded: ε tends to the pure one as δ falls.
TEST(PldEpsilon, LaplaceComposesToItsPureEpsilon) {
  PrivacyLedger ledger;
  ledger.add(laplace(1, 3)).add(laplace(2, 2));
  EXPECT_NEAR(pld_epsilon(ledger, 1e-9), 4, 1e-3);
  EXPECT_LE(pld_epsilon(ledger, 1e-9), 4 + 1e-9);
  // One release by hand: δ(ε) = 1 - e^((ε - 1/b) / 2).
  for (const double epsilon : {0.0, 0.3, 0.9}) {
    EXPECT_NEAR(pld_delta(PrivacyLedger({laplace(1, 1)}), epsilon), 1 - std::exp((epsilon - 1) / 2),
                1e-6);
  }
  // A sample of rate q is ln(1 + q (e^(1/b) - 1))-private.
  const PrivacyLedger sampled({laplace(1, 1, 0.1)});
  const double pure = std::log1p(0.1 * std::expm1(1.0));
  EXPECT_GE(pld_epsilon(sampled, 1e-9), pure - 1e-6);
  EXPECT_LE(pld_epsilon(sampled, 1e-9), pure + 1e-3);  // the next point of the grid
}

TEST(PldEpsilon, IsNeverBelowTheTruthAndTightensWithTheGrid) {
  for (const double sigma : {0.8, 3.0, 20.0}) {
    const double exact = gaussian_epsilon(sigma / std::sqrt(20.0), 1e-6);
    double before = std::numeric_limits<double>::infinity();
    for (const double interval : {1e-2, 1e-3, 1e-4}) {
      const double epsilon = pld_epsilon(run(sigma, 1, 20), 1e-6, {.interval = interval});
      EXPECT_GE(epsilon, exact - 1e-9) << sigma << ' ' << interval;
      EXPECT_LE(epsilon, before) << sigma << ' ' << interval;
      before = epsilon;
    }
    EXPECT_NEAR(before, exact, 1e-4 * exact + 1e-6);
  }
}

TEST(PldEpsilon, ComposesDifferentEvents) {
  PrivacyLedger mixed;
  mixed.add({1.5, 0.04, 200}).add({2.0, 0.1, 30});
  const auto bounds = prv_epsilon(mixed, 1e-5, {.epsilon_error = 1e-3});
  EXPECT_NEAR(pld_epsilon(mixed, 1e-5), bounds.estimate, 1e-3);
  mixed.add(laplace(5, 2));
  EXPECT_GT(pld_epsilon(mixed, 1e-5), bounds.upper);
  EXPECT_LT(pld_epsilon(mixed, 1e-5), bounds.upper + 2.0 / 5);
}

PrivacyEvent fixed_size(double noise_multiplier, double sample_rate, int64_t steps) {
  return {.noise_multiplier = noise_multiplier,
          .sample_rate = sample_rate,
          .steps = steps,
          .sampling = Sampling::fixed_size};
}

// One release by hand: e^ε - 1 = q (e^ε' - 1), and δ is q times that of the whole data for ε'.
TEST(PldEpsilon, OneBatchOfFixedSizeByHand) {
  for (const double epsilon : {0.05, 0.5, 2.0}) {
    const double whole = std::log1p(std::expm1(epsilon) / 0.1);
    EXPECT_NEAR(pld_delta(PrivacyLedger({fixed_size(0.8, 0.1, 1)}), epsilon),
                0.1 * gaussian_delta(0.8, whole), 1e-8);
  }
  // Laplace noise: the pure ε.
  PrivacyEvent event = laplace(1, 3, 0.1);
  event.sampling = Sampling::fixed_size;
  const double pure = 3 * std::log1p(0.1 * std::expm1(1.0));
  EXPECT_NEAR(pld_epsilon(PrivacyLedger({event}), 1e-9), pure, 3e-3);
}

// tests/oracles/fixed_size.py: the same curves of differences, composed by dp-accounting.
TEST(PldEpsilon, BatchesOfFixedSizeComposeAsThePeersFourierTransformHasThem) {
  const auto rows = golden_rows("fixed_size_pld.txt");
  ASSERT_EQ(rows.size(), 20u);
  for (const auto& row : rows) {
    const PrivacyLedger ledger({fixed_size(row[1], row[0], static_cast<int64_t>(row[2]))});
    EXPECT_NEAR(pld_epsilon(ledger, row[3]), row[4], 1e-5 * row[4] + 1e-6)
        << row[0] << ' ' << row[1] << ' ' << row[2] << ' ' << row[3];
    EXPECT_LE(row[4], rdp_epsilon(ledger, row[3]).value);
  }
}

TEST(PldDelta, TurnsEpsilonBack) {
  const auto ledger = run(1.5, 0.04, 500);
  for (const double delta : {1e-3, 1e-5, 1e-8}) {
    EXPECT_NEAR(pld_delta(ledger, pld_epsilon(ledger, delta)), delta, 1e-6 * delta);
  }
}

TEST(PldEpsilon, NothingReleasedIsNothingSpent) {
  EXPECT_EQ(pld_epsilon({}, 1e-5), 0);
  EXPECT_EQ(pld_delta({}, 1), 0);
}

TEST(PldEpsilon, RefusesBadInput) {
  const auto ledger = run(1, 0.1, 1);
  EXPECT_EQ(message_of([&] { pld_epsilon(ledger, 0); }), "delta must lie in (0, 1), but is 0");
  EXPECT_EQ(message_of([&] { pld_delta(ledger, -1); }),
            "epsilon must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(message_of([&] { pld_epsilon(ledger, 1e-5, {.interval = 0}); }),
            "interval of PldOptions must be a finite number above 0, but is 0");
  const auto message = message_of([&] { pld_epsilon(ledger, 1e-5, {.interval = 1e-9}); });
  EXPECT_EQ(message.find("the PLD accountant would need a grid of "), 0u) << message;
}

}  // namespace
}  // namespace torchlore
