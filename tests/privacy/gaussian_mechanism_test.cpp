#include "torchlore/privacy/gaussian_mechanism.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

// Published values of the analytic Gaussian mechanism.
TEST(GaussianMechanism, PublishedValues) {
  EXPECT_NEAR(gaussian_noise_multiplier(1, 1e-5), 3.730631635, 5e-10);
  EXPECT_NEAR(gaussian_noise_multiplier(0.1, 1e-5), 30.749566132, 5e-10);
  EXPECT_NEAR(gaussian_noise_multiplier(8, 1e-5), 0.600229072, 5e-10);
  EXPECT_NEAR(gaussian_delta(1, 1), 0.126936, 1e-6);
}

// What noise of standard deviation 1 / ε on a sensitivity of 1 really gives at δ = 1e-5.
TEST(GaussianMechanism, NoiseOfOneOverEpsilonIsNotEpsilonPrivate) {
  EXPECT_NEAR(gaussian_epsilon(10, 1e-5), 0.341, 5e-4);
  EXPECT_NEAR(gaussian_epsilon(1, 1e-5), 4.38, 5e-3);
  EXPECT_NEAR(gaussian_epsilon(0.125, 1e-5), 65.3, 5e-2);
}

TEST(GaussianMechanism, TheThreeFunctionsAgreeAndNeverOvershoot) {
  for (const double epsilon : {0.01, 0.5, 3.0, 20.0}) {
    for (const double delta : {1e-3, 1e-6, 1e-12, 1e-100}) {
      const double sigma = gaussian_noise_multiplier(epsilon, delta);
      EXPECT_LE(gaussian_delta(sigma, epsilon), delta);
      EXPECT_NEAR(gaussian_delta(sigma, epsilon), delta, 1e-6 * delta);
      EXPECT_NEAR(gaussian_epsilon(sigma, delta), epsilon, 1e-6 * epsilon);
      EXPECT_LE(gaussian_delta(sigma, gaussian_epsilon(sigma, delta)), delta);
    }
  }
}

TEST(GaussianMechanism, DeltaIsSmoothWhereTheTailIsAsymptotic) {
  double before = 1;
  for (double epsilon = 0; epsilon < 60; epsilon += 0.25) {
    const double delta = gaussian_delta(1, epsilon);
    EXPECT_LT(delta, before) << epsilon;
    EXPECT_GT(delta, 0) << epsilon;  // down to 1e-780 of double's range: above it
    if (epsilon > 35) break;
    before = delta;
  }
}

TEST(Gdp, IsTheLimitAndAnApproximation) {
  const double epsilon = gdp_epsilon(1.5, 0.04, 2249, 1e-5);
  EXPECT_GT(epsilon, 6.59);
  EXPECT_LT(epsilon, 6.6);
  EXPECT_DOUBLE_EQ(gdp_epsilon(3, 1, 9, 1e-5), gaussian_epsilon(1, 1e-5));
}

TEST(GaussianMechanism, RefusesBadInput) {
  EXPECT_EQ(message_of([] { gaussian_delta(0, 1); }),
            "noise_multiplier must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of([] { gaussian_delta(1, -1); }),
            "epsilon must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(message_of([] { gaussian_epsilon(1, 0); }), "delta must lie in (0, 1), but is 0");
  EXPECT_EQ(message_of([] { gaussian_noise_multiplier(0, 1e-5); }),
            "epsilon must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of([] { gdp_epsilon(1, 2, 1, 1e-5); }),
            "sample_rate must lie in [0, 1], but is 2");
}

}  // namespace
}  // namespace torchlore
