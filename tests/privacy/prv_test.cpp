#include "torchlore/privacy/prv.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "golden_rows.hpp"
#include "support/message.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"
#include "torchlore/privacy/pld.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

using testing::golden_rows;
using testing::message_of;

PrivacyLedger run(double noise_multiplier, double sample_rate, int64_t steps) {
  return PrivacyLedger({{noise_multiplier, sample_rate, steps}});
}

// Upper bounds that prv-accountant gives with an error of 0.01. It rounds in the tail; the last digits
// differ where ε is large.
TEST(PrvEpsilon, PublishedValues) {
  EXPECT_NEAR(prv_epsilon(run(1.5, 0.04, 2249), 1e-5).upper, 6.777395712, 2e-9);
  struct Published {
    double sigma, q;
    int64_t steps;
    double upper;
  };
  for (const auto& [sigma, q, steps, upper] : {Published{.8, .001, 100, .270403364},
                                               {1.5, .001, 100, .039369419},
                                               {.8, .05, 100, 6.741051934},
                                               {3, .05, 100, .767933790},
                                               {.8, .2, 100, 24.333664178},
                                               {1.5, .05, 1000, 6.209969247},
                                               {2, .001, 20000, .305837940},
                                               {.8, .001, 50000, 2.034514808}}) {
    EXPECT_NEAR(prv_epsilon(run(sigma, q, steps), 1e-6).upper, upper, 2e-7 * upper + 1e-9)
        << sigma << ' ' << q << ' ' << steps;
  }
}

// Gaussians compose to a Gaussian: the truth is known exactly.
TEST(PrvEpsilon, BoundsEncloseTheExactGaussian) {
  for (const int64_t steps : {1, 3, 50, 1000}) {
    for (const double sigma : {0.8, 3.0, 40.0}) {
      const double exact = gaussian_epsilon(sigma / std::sqrt(static_cast<double>(steps)), 1e-5);
      if (exact > 40) continue;
      const auto bounds = prv_epsilon(run(sigma, 1, steps), 1e-5, {.epsilon_error = 0.02});
      EXPECT_LE(bounds.lower, exact);
      EXPECT_GE(bounds.upper, exact);
      EXPECT_NEAR(bounds.estimate, exact, 1e-3) << sigma << ' ' << steps;
    }
  }
}

// tests/oracles/accountants.py: dp-accounting's optimistic and pessimistic PLD, and prv-accountant.
TEST(PrvEpsilon, LiesBetweenTheBoundsOfOthersOnRandomRuns) {
  const auto rows = golden_rows("accountants.txt");
  ASSERT_EQ(rows.size(), 500u);
  int unlike = 0;
  for (const auto& row : rows) {
    const auto ledger = run(row[0], row[1], static_cast<int64_t>(row[2]));
    const auto bounds = prv_epsilon(ledger, row[3], {.epsilon_error = 0.1});
    const auto context = ::testing::Message()
                         << row[0] << ' ' << row[1] << ' ' << row[2] << ' ' << row[3];
    EXPECT_LE(bounds.lower, row[6]) << context;
    EXPECT_GE(bounds.upper, row[5]) << context;
    EXPECT_NEAR(bounds.upper, row[9], 0.05) << context;
    unlike += std::abs(bounds.upper - row[9]) > 2e-4 ? 1 : 0;
    EXPECT_LE(bounds.estimate, rdp_epsilon(ledger, row[3]).value + 0.1) << context;
  }
  // In three runs prv-accountant is 0.01 to 0.04 above PLD; ours is not.
  EXPECT_EQ(unlike, 3);
}

TEST(PrvEpsilon, ComposesDifferentEvents) {
  // Gaussians of different width add up to one.
  PrivacyLedger mixed;
  mixed.add({4.0, 1, 10}).add({6.0, 1, 7});
  const double sigma = 1 / std::sqrt(10 / 16.0 + 7 / 36.0);
  EXPECT_NEAR(prv_epsilon(mixed, 1e-5).estimate, gaussian_epsilon(sigma, 1e-5), 1e-5);
  // The order of events does not matter, nor how their steps are grouped.
  const PrivacyLedger a({{1.5, 0.04, 200}, {2.0, 0.1, 30}});
  const PrivacyLedger b({{2.0, 0.1, 10}, {1.5, 0.04, 200}, {2.0, 0.1, 20}});
  EXPECT_NEAR(prv_epsilon(a, 1e-5).estimate, prv_epsilon(b, 1e-5).estimate, 1e-10);
}

TEST(PrvEpsilon, ASmallerErrorNarrowsTheBounds) {
  const auto ledger = run(0.7, 0.01, 120);
  const auto wide = prv_epsilon(ledger, 1e-5, {.epsilon_error = 0.1});
  const auto narrow = prv_epsilon(ledger, 1e-5, {.epsilon_error = 0.001});
  EXPECT_NEAR(narrow.upper - narrow.lower, 0.002, 0.001);
  EXPECT_LE(wide.lower, narrow.lower);
  EXPECT_GE(wide.upper, narrow.upper);
  EXPECT_NEAR(narrow.estimate, 2.4612381, 1e-4);  // dp-accounting's PLD
}

// Neither direction is always the worse one: pld_epsilon takes both from the trade-off curves themselves.
TEST(PrvEpsilon, CoversAnExampleMoreAndAnExampleLess) {
  for (const double q : {0.1, 0.5, 0.99}) {
    for (const double sigma : {0.7, 2.0}) {
      const auto ledger = run(sigma, q, 5);
      for (const double delta : {0.1, 1e-5}) {
        const auto bounds = prv_epsilon(ledger, delta);
        const double epsilon = pld_epsilon(ledger, delta, {.interval = 1e-4});
        EXPECT_NEAR(bounds.estimate, epsilon, 1e-3 * epsilon + 1e-3) << q << ' ' << sigma;
        EXPECT_LE(bounds.lower, epsilon);
        EXPECT_GE(bounds.upper, epsilon - 1e-4);
      }
    }
  }
}

TEST(PrvDelta, PublishedValues) {
  const PrvOptions fine{.epsilon_error = 1e-4};
  EXPECT_NEAR(prv_delta(run(std::sqrt(3.0), 1, 3), 1, fine).estimate, 0.126936, 1e-6);
  EXPECT_NEAR(prv_delta(run(0.5, 0.2, 3), 1, fine).estimate, 0.15594, 1e-5);
}

TEST(PrvDelta, TurnsEpsilonBack) {
  const auto ledger = run(1.5, 0.04, 500);
  for (const double delta : {1e-3, 1e-5, 1e-7}) {
    const PrvOptions options{.epsilon_error = 0.01, .delta_error = delta / 1000};
    const double epsilon = prv_epsilon(ledger, delta, options).estimate;
    EXPECT_NEAR(prv_delta(ledger, epsilon, options).estimate, delta, 1e-5 * delta);
  }
}

TEST(PrvEpsilon, NothingReleasedIsNothingSpent) {
  EXPECT_EQ(prv_epsilon({}, 1e-5).upper, 0);
  EXPECT_EQ(prv_delta({}, 1).upper, 0);
}

TEST(PrvEpsilon, RefusesBadInput) {
  const auto ledger = run(1, 0.1, 1);
  EXPECT_EQ(message_of([&] { prv_epsilon(ledger, 1); }), "delta must lie in (0, 1), but is 1");
  EXPECT_EQ(message_of([&] { prv_epsilon(ledger, 1e-5, {.epsilon_error = 0}); }),
            "epsilon_error must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of([&] { prv_epsilon(ledger, 1e-5, {.delta_error = 1e-4}); }),
            "delta_error must be below delta (1e-05), but is 0.0001");
  EXPECT_EQ(message_of([&] { prv_delta(ledger, -1); }),
            "epsilon must be a finite number, 0 or above, but is -1");
  const PrivacyLedger laplace({{.noise_multiplier = 1, .noise = Noise::laplace}});
  EXPECT_EQ(
      message_of([&] { prv_epsilon(laplace, 1e-5); }),
      "the PRV accountant knows the Gaussian mechanism only; account for the Laplace mechanism "
      "by pld_epsilon");
  const PrivacyLedger fixed(
      {{.noise_multiplier = 1, .sample_rate = 0.1, .sampling = Sampling::fixed_size}});
  EXPECT_EQ(message_of([&] { prv_epsilon(fixed, 1e-5); }),
            "the PRV accountant has no theorem for batches of a fixed size; account for them by "
            "pld_epsilon or rdp_epsilon");
  const auto message = message_of([&] { prv_epsilon(run(0.01, 0.5, 1000), 1e-5); });
  EXPECT_EQ(message.find("the PRV accountant would need a grid of "), 0u) << message;
  EXPECT_NE(message.find(" points for an epsilon_error of 0.01; allow "), std::string::npos);
}

}  // namespace
}  // namespace torchlore
