#include "torchlore/privacy/zcdp.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "golden_rows.hpp"
#include "support/message.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"
#include "torchlore/privacy/pld.hpp"

namespace torchlore {
namespace {

using testing::golden_rows;
using testing::message_of;

TEST(ZcdpRho, AddsUp) {
  EXPECT_EQ(zcdp_rho({}), 0);
  PrivacyLedger ledger;
  ledger.add({.noise_multiplier = 2, .steps = 3}).add({.noise_multiplier = 5});
  EXPECT_DOUBLE_EQ(zcdp_rho(ledger), 3.0 / 8 + 1.0 / 50);
  ledger.add({.noise_multiplier = 4, .steps = 2, .noise = Noise::laplace});
  EXPECT_DOUBLE_EQ(zcdp_rho(ledger), 3.0 / 8 + 1.0 / 50 + 1.0 / 16);
  const PrivacyLedger sampled(
      {{.noise_multiplier = 1, .sample_rate = 0.1, .noise = Noise::laplace}});
  const double pure = std::log1p(0.1 * std::expm1(1.0));
  EXPECT_DOUBLE_EQ(zcdp_rho(sampled), pure * pure / 2);
}

// tests/oracles/zcdp.py, by mpmath.
TEST(ZcdpEpsilon, EqualsHighPrecision) {
  const auto rows = golden_rows("zcdp.txt");
  ASSERT_EQ(rows.size(), 40u);
  for (const auto& row : rows) {
    const double epsilon = zcdp_epsilon(row[0], row[1]);
    EXPECT_NEAR(epsilon, row[2], 1e-10 * row[2]) << row[0] << ' ' << row[1];
    EXPECT_NEAR(zcdp_delta(row[0], row[2]), row[1], 1e-9 * row[1]);
    EXPECT_LE(epsilon, row[0] + 2 * std::sqrt(-row[0] * std::log(row[1])));
    EXPECT_NEAR(zcdp_budget(row[2], row[1]), row[0], 1e-9 * row[0]);
  }
}

TEST(ZcdpEpsilon, LiesAboveTheTruth) {
  for (const double sigma : {0.5, 2.0, 30.0}) {
    const double rho = 1 / (2 * sigma * sigma);
    for (const double delta : {1e-3, 1e-6}) {
      EXPECT_GE(zcdp_epsilon(rho, delta), gaussian_epsilon(sigma, delta));
    }
    const PrivacyLedger laplace({{.noise_multiplier = sigma, .steps = 5, .noise = Noise::laplace}});
    EXPECT_GE(zcdp_epsilon(zcdp_rho(laplace), 1e-6), pld_epsilon(laplace, 1e-6));
  }
}

TEST(ZcdpEpsilon, AtItsEnds) {
  EXPECT_EQ(zcdp_epsilon(0, 1e-5), 0);
  EXPECT_EQ(zcdp_delta(0, 0), 0);
  EXPECT_LE(zcdp_delta(100, 0), 1);
  EXPECT_GT(zcdp_delta(100, 0), 0.999);
  EXPECT_EQ(zcdp_delta(1e-6, 50), 0);
}

TEST(ZcdpEpsilon, RefusesBadInput) {
  EXPECT_EQ(message_of([] { zcdp_epsilon(-1, 1e-5); }),
            "rho must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(message_of([] { zcdp_epsilon(1, 1); }), "delta must lie in (0, 1), but is 1");
  EXPECT_EQ(message_of([] { zcdp_budget(0, 1e-5); }),
            "epsilon must be a finite number above 0, but is 0");
  EXPECT_EQ(
      message_of([] { zcdp_rho(PrivacyLedger({{.noise_multiplier = 1, .sample_rate = 0.1}})); }),
      "zero-concentrated privacy has no gain from sampling (a sample_rate is 0.1); take "
      "prv_epsilon or rdp_epsilon");
}

}  // namespace
}  // namespace torchlore
