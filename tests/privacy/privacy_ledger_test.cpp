#include "torchlore/privacy/privacy_ledger.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

TEST(PrivacyLedger, CountsEqualEventsTogether) {
  PrivacyLedger ledger;
  EXPECT_TRUE(ledger.empty());
  ledger.add({.noise_multiplier = 1.1, .sample_rate = 0.01, .steps = 10})
      .add({.noise_multiplier = 1.1, .sample_rate = 0.01})
      .add({.noise_multiplier = 1.1, .sample_rate = 0.02})
      .add({.noise_multiplier = 1.1, .sample_rate = 0.01, .noise = Noise::laplace})
      .add({.noise_multiplier = 1.2, .sample_rate = 0.01});
  ASSERT_EQ(ledger.events().size(), 4u);
  EXPECT_EQ(ledger.events()[0].steps, 11);
  const PrivacyLedger again(ledger.events());
  ASSERT_EQ(again.events().size(), 4u);
  EXPECT_EQ(again.events()[0].steps, 11);
}

TEST(PrivacyLedger, RefusesValuesOutOfRangeAndKeepsWhatItHas) {
  PrivacyLedger ledger;
  ledger.add({.noise_multiplier = 1});
  EXPECT_EQ(message_of([&] { ledger.add({.noise_multiplier = 0}); }),
            "noise_multiplier of a PrivacyEvent must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of([&] { ledger.add({.noise_multiplier = 1, .sample_rate = 1.5}); }),
            "sample_rate of a PrivacyEvent must lie in (0, 1], but is 1.5");
  EXPECT_EQ(message_of([&] { ledger.add({.noise_multiplier = 1, .sample_rate = 0}); }),
            "sample_rate of a PrivacyEvent must lie in (0, 1], but is 0");
  EXPECT_EQ(message_of([&] { ledger.add({.noise_multiplier = 1, .steps = 0}); }),
            "steps of a PrivacyEvent must be 1 or more, but is 0");
  ASSERT_EQ(ledger.events().size(), 1u);
  EXPECT_EQ(ledger.events()[0].steps, 1);
}

TEST(PrivacyLedger, RefusesToMixWhatHasOtherNeighbours) {
  PrivacyLedger ledger;
  ledger.add({.noise_multiplier = 1, .sample_rate = 0.1});
  EXPECT_EQ(
      message_of([&] {
        ledger.add({.noise_multiplier = 1, .sample_rate = 0.1, .sampling = Sampling::fixed_size});
      }),
      "a PrivacyLedger cannot hold Poisson samples and batches of a fixed size together: the "
      "former "
      "are private among data sets with one example more or less, the latter among those with one "
      "example replaced; draw all batches in the same way");
  EXPECT_EQ(ledger.events().size(), 1u);
}

TEST(PrivacyLedger, RefusesMoreStepsThanCanBeCounted) {
  PrivacyLedger ledger;
  ledger.add({.noise_multiplier = 1, .steps = std::numeric_limits<int64_t>::max()});
  EXPECT_EQ(message_of([&] { ledger.add({.noise_multiplier = 1, .steps = 2}); }),
            "a PrivacyLedger cannot count 9223372036854775807 and 2 more steps");
}

}  // namespace
}  // namespace torchlore
