#include "torchlore/privacy/pure_dp.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/message.hpp"
#include "torchlore/privacy/pld.hpp"

namespace torchlore {
namespace {

using testing::message_of;

TEST(PureEpsilon, AddsUp) {
  EXPECT_EQ(pure_epsilon({}), 0);
  PrivacyLedger ledger;
  ledger.add({.noise_multiplier = 1, .steps = 3, .noise = Noise::laplace})
      .add({.noise_multiplier = 2, .steps = 2, .noise = Noise::laplace});
  EXPECT_DOUBLE_EQ(pure_epsilon(ledger), 4);  // a published value
}

TEST(PureEpsilon, GainsFromSampling) {
  for (const auto sampling : {Sampling::poisson, Sampling::fixed_size}) {
    const PrivacyLedger ledger({{.noise_multiplier = 0.7,
                                 .sample_rate = 0.2,
                                 .steps = 4,
                                 .noise = Noise::laplace,
                                 .sampling = sampling}});
    EXPECT_NEAR(pure_epsilon(ledger), 4 * std::log(1 + 0.2 * (std::exp(1 / 0.7) - 1)), 1e-12);
    // The trade-off curve itself ends there.
    EXPECT_LT(pld_delta(ledger, pure_epsilon(ledger) + 4e-3), 1e-12);
    EXPECT_GT(pld_delta(ledger, pure_epsilon(ledger) - 0.3), 0);
  }
}

TEST(LaplaceNoiseMultiplier, IsTheInverse) {
  EXPECT_DOUBLE_EQ(laplace_noise_multiplier(0.25), 4);
  EXPECT_EQ(message_of([] { laplace_noise_multiplier(0); }),
            "epsilon must be a finite number above 0, but is 0");
}

TEST(PureEpsilon, RefusesGaussianNoise) {
  EXPECT_EQ(message_of([] { pure_epsilon(PrivacyLedger().add({.noise_multiplier = 1})); }),
            "Gaussian noise has no epsilon with delta 0; take prv_epsilon, or zcdp_rho without "
            "sampling");
}

}  // namespace
}  // namespace torchlore
