#include "torchlore/privacy/privacy_budget.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/message.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

using testing::message_of;

TEST(SpentEpsilon, IsNoMoreThanEitherAccountantProves) {
  EXPECT_EQ(spent_epsilon({}, 1e-5, Accounting::prv), 0);
  const PrivacyLedger ledger({{1.5, 0.04, 500}});
  const double rdp = rdp_epsilon(ledger, 1e-5).value;
  EXPECT_EQ(spent_epsilon(ledger, 1e-5, Accounting::rdp), rdp);
  for (const auto accounting : {Accounting::prv, Accounting::pld}) {
    const double epsilon = spent_epsilon(ledger, 1e-5, accounting);
    EXPECT_LT(epsilon, rdp);
    EXPECT_GE(epsilon, prv_epsilon(ledger, 1e-5, {.epsilon_error = 0.02}).lower);
  }
}

TEST(SpentEpsilon, TakesACoarserGridOrNoneForVeryManySteps) {
  const PrivacyLedger many({{20, 0.001, 20'000'000}});
  const double rdp = rdp_epsilon(many, 1e-5).value;
  const double epsilon = spent_epsilon(many, 1e-5, Accounting::prv);
  EXPECT_LE(epsilon, rdp);
  EXPECT_GT(epsilon, 0.5 * rdp);
  const PrivacyLedger loud({{0.1, 1, 100}});
  EXPECT_EQ(spent_epsilon(loud, 1e-5, Accounting::prv), rdp_epsilon(loud, 1e-5).value);
}

// Without sampling the truth is known: Gaussians add up to one.
TEST(StepsWithin, IsTheLargestNumberThatFits) {
  const PrivacyBudget budget{.epsilon = 2, .delta = 1e-5};
  for (const double sigma : {3.0, 10.0, 40.0}) {
    const double least = gaussian_noise_multiplier(2, 1e-5);
    const auto most = static_cast<int64_t>(std::floor(sigma * sigma / (least * least)));
    const auto steps = steps_within(budget, {}, {.noise_multiplier = sigma}, Accounting::prv);
    EXPECT_LE(steps, most) << sigma;
    EXPECT_GE(static_cast<double>(steps), 0.97 * static_cast<double>(most) - 1) << sigma;
  }
}

TEST(StepsWithin, CountsWhatIsSpent) {
  const PrivacyBudget budget{.epsilon = 2, .delta = 1e-5};
  const PrivacyEvent event{.noise_multiplier = 1.5, .sample_rate = 0.01};
  const auto all = steps_within(budget, {}, event, Accounting::rdp);
  auto half = event;
  half.steps = all / 2;
  EXPECT_EQ(steps_within(budget, PrivacyLedger({half}), event, Accounting::rdp), all - all / 2);
  auto over = event;
  over.steps = all + 1;
  EXPECT_EQ(steps_within(budget, PrivacyLedger({over}), event, Accounting::rdp), 0);
  EXPECT_EQ(steps_within(budget, {}, event, Accounting::rdp, 7), 7);
}

TEST(StepsWithin, RefusesBadInput) {
  const PrivacyEvent event{.noise_multiplier = 1};
  EXPECT_EQ(
      message_of([&] { steps_within({.epsilon = 0, .delta = 0.1}, {}, event, Accounting::rdp); }),
      "epsilon of a PrivacyBudget must be a finite number above 0, but is 0");
  EXPECT_EQ(
      message_of([&] { steps_within({.epsilon = 1, .delta = 0}, {}, event, Accounting::rdp); }),
      "delta of a PrivacyBudget must lie in (0, 1), but is 0");
  EXPECT_EQ(message_of(
                [&] { steps_within({.epsilon = 1, .delta = 0.1}, {}, event, Accounting::rdp, 0); }),
            "most must be 1 or more, but is 0");
}

}  // namespace
}  // namespace torchlore
