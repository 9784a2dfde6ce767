#include "torchlore/privacy/rdp.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "golden_rows.hpp"
#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::golden_rows;
using testing::message_of;

PrivacyLedger run(double noise_multiplier, double sample_rate, int64_t steps) {
  return PrivacyLedger({{noise_multiplier, sample_rate, steps}});
}

std::vector<double> opacus_orders() {
  std::vector<double> orders;
  for (int tenth = 11; tenth < 110; ++tenth) orders.push_back(tenth / 10.0);
  for (int order = 12; order < 64; ++order) orders.push_back(order);
  return orders;
}

// Against mpmath at 30 digits: tests/oracles/rdp.py.
TEST(RdpSampledGaussian, EqualsHighPrecisionForWholeAndOtherOrders) {
  const auto rows = golden_rows("rdp.txt");
  ASSERT_EQ(rows.size(), 400u);
  for (const auto& row : rows) {
    const double rdp = rdp_sampled_gaussian(row[0], row[1], row[2]);
    EXPECT_NEAR(rdp, row[3], 1e-10 * row[3])
        << "q " << row[0] << ", sigma " << row[1] << ", alpha " << row[2];
  }
}

TEST(RdpSampledGaussian, KeepsTheSignsOfTheSeries) {
  // dp-accounting 0.6 drops them: 6.7058e-4.
  EXPECT_NEAR(50 * rdp_sampled_gaussian(0.01, 2.5, 1.5), 6.5007e-4, 5e-9);
}

// dp-accounting 0.6 gives up here and answers infinity.
TEST(RdpSampledGaussian, IsFiniteWhereTheSeriesConvergesSlowly) {
  for (const double alpha : {1.1, 1.2, 1.3}) {
    EXPECT_LT(rdp_sampled_gaussian(0.1, 1.0, alpha), 0.01) << alpha;
  }
}

TEST(RdpSampledGaussian, GrowsWithTheOrderAndIsContinuousAtWholeOnes) {
  for (const double q : {1e-6, 0.01, 0.3, 0.99}) {
    for (const double sigma : {0.2, 0.7, 1.0, 4.0, 30.0}) {
      double before = 0;
      for (const double alpha : default_rdp_orders()) {
        const double rdp = rdp_sampled_gaussian(q, sigma, alpha);
        EXPECT_GE(rdp, before) << q << ' ' << sigma << ' ' << alpha;
        before = rdp;
      }
      for (const double alpha : {2.0, 5.0, 33.0}) {
        const double whole = rdp_sampled_gaussian(q, sigma, alpha);
        EXPECT_NEAR(rdp_sampled_gaussian(q, sigma, std::nextafter(alpha, 1.0)), whole,
                    1e-10 * whole)
            << q << ' ' << sigma << ' ' << alpha;
      }
    }
  }
}

TEST(RdpSampledGaussian, WithAllDataIsTheGaussianMechanism) {
  EXPECT_DOUBLE_EQ(rdp_sampled_gaussian(1, 2, 3), 3.0 / 8);
  EXPECT_EQ(rdp_sampled_gaussian(0, 2, 3), 0);
}

// tests/oracles/fixed_size.py, by mpmath from the definition.
TEST(RdpFixedSizeGaussian, IsTheDominatingPairsBelowThePapersBoundAndAboveWhatOccurs) {
  const auto rows = golden_rows("fixed_size.txt");
  ASSERT_EQ(rows.size(), 60u);
  for (const auto& row : rows) {
    const double rdp = rdp_fixed_size_gaussian(row[0], row[1], row[2]);
    const auto context = ::testing::Message() << row[0] << ' ' << row[1] << ' ' << row[2];
    EXPECT_NEAR(rdp, row[3], 1e-9 * row[3]) << context;
    EXPECT_GE(rdp, row[6]) << context;
    if (row[4] == 0) continue;  // not a whole order
    EXPECT_LE(rdp, row[4]) << context;
    EXPECT_LE(rdp, row[5]) << context;  // dp-accounting
    EXPECT_LE(row[5], row[4] * (1 + 1e-9)) << context;
  }
}

TEST(RdpFixedSizeGaussian, GrowsWithTheOrderAndEndsWithAllData) {
  EXPECT_EQ(rdp_fixed_size_gaussian(0, 2, 3), 0);
  EXPECT_DOUBLE_EQ(rdp_fixed_size_gaussian(1, 2, 3), 3.0 / 8);
  for (const double q : {1e-6, 0.01, 0.3, 0.99}) {
    for (const double sigma : {0.4, 1.0, 4.0, 30.0}) {
      double before = 0;
      for (const double alpha : {1.01, 1.5, 2.0, 7.3, 32.0, 200.5, 1024.0}) {
        const double rdp = rdp_fixed_size_gaussian(q, sigma, alpha);
        EXPECT_GE(rdp, before * (1 - 1e-9)) << q << ' ' << sigma << ' ' << alpha;
        EXPECT_LE(rdp, alpha / (2 * sigma * sigma));
        // Both directions of a Poisson sample are among what it bounds.
        EXPECT_GE(rdp, rdp_sampled_gaussian(q, sigma, alpha) * (1 - 1e-9)) << q << ' ' << sigma;
        before = rdp;
      }
    }
  }
}

TEST(RdpSampledGaussian, LargeOrdersThatAreNotWholeLieBetweenTheirNeighbours) {
  for (const double q : {1e-4, 1e-3, 0.02}) {
    for (const double alpha : {150.5, 400.5, 900.5}) {
      const double rdp = rdp_sampled_gaussian(q, 20, alpha);
      EXPECT_GT(rdp, rdp_sampled_gaussian(q, 20, alpha - 0.5)) << q << ' ' << alpha;
      EXPECT_LT(rdp, rdp_sampled_gaussian(q, 20, alpha + 0.5)) << q << ' ' << alpha;
    }
  }
}

TEST(RdpLaplace, EqualsTheFormula) {
  // Order 2 and scale 2, by hand: ln(2/3 e^0.5 + 1/3 e^-1).
  EXPECT_NEAR(rdp_laplace(2, 2), std::log(2.0 / 3 * std::exp(0.5) + std::exp(-1.0) / 3), 1e-14);
  EXPECT_NEAR(rdp_laplace(1, 1e6), 1, 1e-5);  // towards pure ε = 1 / scale
}

// Values that other accountants and their papers print.
TEST(RdpEpsilon, PublishedValues) {
  EXPECT_NEAR(rdp_epsilon(run(1.5, 0.04, 2250), 1e-5, opacus_orders()).value, 7.32911117143, 1e-10);
  const auto small = rdp_epsilon(run(1.3, 150.0 / 60000, 6000), 1e-5);
  EXPECT_NEAR(small.value, 0.7242234026, 1e-10);
  EXPECT_EQ(small.order, 19);
  const auto tiny = rdp_epsilon(run(1.0, 100.0 / 1e5, 30000), 1e-7);
  EXPECT_NEAR(tiny.value, 1.4154988495, 1e-10);
  EXPECT_EQ(tiny.order, 13);
}

// Against dp-accounting, which is right for whole orders: tests/oracles/accountants.py.
TEST(RdpEpsilon, EqualsDpAccountingOnRandomRuns) {
  std::vector<double> orders;
  for (int order = 2; order < 65; ++order) orders.push_back(order);
  const auto rows = golden_rows("accountants.txt");
  ASSERT_EQ(rows.size(), 500u);
  for (const auto& row : rows) {
    const auto ledger = run(row[0], row[1], static_cast<int64_t>(row[2]));
    EXPECT_NEAR(rdp_epsilon(ledger, row[3], orders).value, row[4], 1e-9 * row[4]);
    // Fractional orders can only help.
    EXPECT_LE(rdp_epsilon(ledger, row[3]).value, row[4] * (1 + 1e-9));
  }
}

TEST(RdpEpsilon, AddsUpWhateverWasReleased) {
  PrivacyLedger mixed;
  mixed.add({1.5, 0.04, 1000}).add({2.0, 0.01, 500}).add({3.0, 1.0, 2});
  mixed.add({.noise_multiplier = 20, .steps = 3, .noise = Noise::laplace});
  const double alpha = 4.4;
  const double rdp = 1000 * rdp_sampled_gaussian(0.04, 1.5, alpha) +
                     500 * rdp_sampled_gaussian(0.01, 2.0, alpha) + 2 * alpha / 18 +
                     3 * rdp_laplace(20, alpha);
  const double expected =
      rdp + std::log((alpha - 1) / alpha) - (std::log(1e-5) + std::log(alpha)) / (alpha - 1);
  EXPECT_NEAR(rdp_epsilon(mixed, 1e-5, {alpha}).value, expected, 1e-12);
}

TEST(RdpEpsilon, IsNeverNegativeAndZeroForNothing) {
  EXPECT_EQ(rdp_epsilon({}, 1e-5).value, 0);
  EXPECT_EQ(rdp_epsilon(run(100, 0.001, 1), 0.1).value, 0);
  EXPECT_EQ(rdp_delta({}, 1).value, 0);
}

TEST(RdpDelta, TurnsEpsilonBack) {
  const auto ledger = run(1.5, 0.04, 2250);
  for (const double delta : {1e-3, 1e-5, 1e-9}) {
    const double epsilon = rdp_epsilon(ledger, delta).value;
    EXPECT_NEAR(rdp_delta(ledger, epsilon).value, delta, 1e-9 * delta);
  }
  EXPECT_LE(rdp_delta(ledger, 0).value, 1);
}

TEST(RdpEpsilon, RefusesBadInput) {
  const auto ledger = run(1, 0.1, 1);
  EXPECT_EQ(message_of([&] { rdp_epsilon(ledger, 0); }), "delta must lie in (0, 1), but is 0");
  EXPECT_EQ(message_of([&] { rdp_epsilon(ledger, 1e-5, {}); }),
            "RDP needs at least one order, but got none");
  EXPECT_EQ(message_of([&] {
              rdp_epsilon(ledger, 1e-5, {2, 1});
            }),
            "an order of RDP must be above 1, but is 1");
  EXPECT_EQ(message_of([&] { rdp_delta(ledger, -1); }),
            "epsilon must be a finite number, 0 or above, but is -1");
  const PrivacyLedger laplace(
      {{.noise_multiplier = 1, .sample_rate = 0.1, .noise = Noise::laplace}});
  EXPECT_EQ(message_of([&] { rdp_epsilon(laplace, 1e-5); }),
            "the RDP accountant has no theorem for a sampled Laplace mechanism (its sample_rate is "
            "0.1); take pld_epsilon");
}

}  // namespace
}  // namespace torchlore
