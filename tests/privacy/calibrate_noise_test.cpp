#include "torchlore/privacy/calibrate_noise.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/message.hpp"
#include "torchlore/privacy/pld.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

using testing::message_of;

PrivacyLedger run(double sigma, const PrivacyTarget& target) {
  return PrivacyLedger({{sigma, target.sample_rate, target.steps}});
}

// Noise multipliers that Opacus finds, which stops within 0.01 of ε.
TEST(CalibrateNoise, PublishedValues) {
  PrivacyTarget target{.epsilon = 8, .delta = 1e-5, .sample_rate = 0.04, .steps = 2250};
  EXPECT_NEAR(calibrate_noise(target), 1.34765625, 0.003);
  target.accounting = Accounting::rdp;
  EXPECT_NEAR(calibrate_noise(target), 1.416, 0.003);
}

TEST(CalibrateNoise, NeverOvershootsAndIsClose) {
  for (const double epsilon : {0.3, 1.0, 4.0}) {
    for (const double q : {0.003, 0.05, 1.0}) {
      for (const auto accounting : {Accounting::rdp, Accounting::prv}) {
        const PrivacyTarget target{epsilon, 1e-5, q, 200, accounting};
        const double sigma = calibrate_noise(target);
        const auto spent = [&](double s) {
          return accounting == Accounting::rdp
                     ? rdp_epsilon(run(s, target), 1e-5).value
                     : prv_epsilon(run(s, target), 1e-5,
                                   {.epsilon_error = std::min(0.01, epsilon / 100)})
                           .upper;
        };
        EXPECT_LE(spent(sigma), epsilon) << epsilon << ' ' << q;
        EXPECT_GT(spent(sigma * 0.995), epsilon) << epsilon << ' ' << q;
      }
    }
  }
}

TEST(CalibrateNoise, BatchesOfFixedSize) {
  for (const auto accounting : {Accounting::rdp, Accounting::pld}) {
    const PrivacyTarget target{.epsilon = 2,
                               .delta = 1e-5,
                               .sample_rate = 0.02,
                               .steps = 100,
                               .accounting = accounting,
                               .sampling = Sampling::fixed_size};
    const auto spent = [&](double sigma) {
      const PrivacyLedger ledger({{.noise_multiplier = sigma,
                                   .sample_rate = 0.02,
                                   .steps = 100,
                                   .sampling = Sampling::fixed_size}});
      return accounting == Accounting::rdp ? rdp_epsilon(ledger, 1e-5).value
                                           : pld_epsilon(ledger, 1e-5);
    };
    const double sigma = calibrate_noise(target);
    EXPECT_LE(spent(sigma), 2);
    EXPECT_GT(spent(sigma * 0.995), 2);
  }
}

TEST(CalibrateNoise, RefusesBadInput) {
  EXPECT_EQ(message_of([] {
              calibrate_noise({.epsilon = 1, .delta = 1e-5, .sampling = Sampling::fixed_size});
            }),
            "the PRV accountant has no theorem for batches of a fixed size; set accounting to "
            "Accounting::pld");
  EXPECT_EQ(message_of([] { calibrate_noise({.epsilon = 0, .delta = 1e-5}); }),
            "epsilon of a PrivacyTarget must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of([] { calibrate_noise({.epsilon = 1, .delta = 0}); }),
            "delta of a PrivacyTarget must lie in (0, 1), but is 0");
  EXPECT_EQ(message_of([] { calibrate_noise({.epsilon = 1, .delta = 1e-5, .sample_rate = 0}); }),
            "sample_rate of a PrivacyEvent must lie in (0, 1], but is 0");
  EXPECT_EQ(
      message_of([] {
        calibrate_noise(
            {.epsilon = 1e-9, .delta = 1e-300, .steps = 1'000'000, .accounting = Accounting::rdp});
      }),
      "no noise multiplier up to 1e9 gives epsilon 1e-09 at delta 1e-300 after 1000000 steps; "
      "allow more, or make fewer steps");
}

}  // namespace
}  // namespace torchlore
