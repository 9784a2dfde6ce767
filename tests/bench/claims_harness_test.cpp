#include <gtest/gtest.h>

#include "../../bench/claims/harness/statistics.hpp"

namespace torchlore::claims {
namespace {

// Ranks of the sign test's two-sided 95 % interval, from published tables of the median.
TEST(Statistics, RankOfTheMediansIntervalFollowsTheBinomialTables) {
  EXPECT_EQ(median_interval_rank(6), 1u);
  EXPECT_EQ(median_interval_rank(8), 1u);
  EXPECT_EQ(median_interval_rank(9), 2u);
  EXPECT_EQ(median_interval_rank(12), 3u);
  EXPECT_EQ(median_interval_rank(15), 4u);
  EXPECT_EQ(median_interval_rank(20), 6u);
  EXPECT_EQ(median_interval_rank(25), 8u);
}

TEST(Statistics, RatioIsThatOfThePairs) {
  const Estimate estimate = ratio({2, 9, 4}, {1, 3, 1});
  EXPECT_DOUBLE_EQ(estimate.value, 3);
  EXPECT_DOUBLE_EQ(estimate.low, 2);
  EXPECT_DOUBLE_EQ(estimate.high, 4);
}

TEST(Statistics, MedianOfAnEvenNumberLiesBetween) { EXPECT_DOUBLE_EQ(median({4, 1, 3, 2}), 2.5); }

TEST(Statistics, NothingMeasuredIsNotANumber) {
  EXPECT_TRUE(std::isnan(ratio({}, {}).value));
  EXPECT_TRUE(std::isnan(median({})));
}

}  // namespace
}  // namespace torchlore::claims
