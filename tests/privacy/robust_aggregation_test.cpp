#include "torchlore/privacy/robust_aggregation.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

std::vector<StateDict> updates(const std::vector<std::vector<float>>& rows) {
  std::vector<StateDict> result;
  for (const auto& row : rows) result.push_back({{"w", at::tensor(row)}});
  return result;
}

TEST(RobustAggregation, MedianOfEachElement) {
  const auto odd = updates({{1, 5}, {1e30F, 6}, {2, -1e30F}});
  EXPECT_TRUE(same(coordinate_median(odd).at("w"), at::tensor({2.F, 5.F})));
  const auto even = updates({{1, 5}, {9, 6}, {2, 0}, {4, 1}});
  EXPECT_TRUE(same(coordinate_median(even).at("w"), at::tensor({3.F, 3.F})));
  EXPECT_TRUE(same(coordinate_median(updates({{7, 8}})).at("w"), at::tensor({7.F, 8.F})));
}

TEST(RobustAggregation, MeanWithoutTheExtremes) {
  const auto five = updates({{1, 5}, {1e30F, 6}, {2, -1e30F}, {3, 7}, {4, 8}});
  EXPECT_TRUE(same(trimmed_mean(five, 1).at("w"), at::tensor({3.F, 6.F})));
  EXPECT_TRUE(same(trimmed_mean(five, 2).at("w"), coordinate_median(five).at("w")));
  EXPECT_TRUE(same(trimmed_mean(updates({{1, 2}, {3, 6}}), 0).at("w"), at::tensor({2.F, 4.F})));
}

TEST(RobustAggregation, RefusesWhatItCannotCompare) {
  EXPECT_EQ(message_of<c10::ValueError>([] { coordinate_median({}); }),
            "there are no updates to aggregate");
  EXPECT_EQ(message_of<c10::ValueError>([] {
              trimmed_mean(updates({{1}, {2}}), 1);
            }),
            "trim must be 0 or more and less than half of the 2 updates, but is 1");
  EXPECT_EQ(message_of<c10::ValueError>([] {
              trimmed_mean(updates({{1}, {2, 3}}), 0);
            }),
            "\"w\" of update 1 has the shape [2], and that of update 0 has [1]");
  EXPECT_EQ(message_of<c10::ValueError>([] {
              trimmed_mean(updates({{1}, {NAN}}), 0);
            }),
            "\"w\" of update 1 holds a value that is not finite");
  EXPECT_EQ(message_of<c10::ValueError>([] {
              trimmed_mean({{{"w", at::zeros({1})}}, {{"v", at::zeros({1})}}}, 0);
            }),
            "update 1 does not have the tensors of update 0, such as \"w\"");
  EXPECT_THROW(trimmed_mean({{{"w", at::zeros({1}, at::kLong)}}}, 0), c10::TypeError);
}

}  // namespace
}  // namespace torchlore
