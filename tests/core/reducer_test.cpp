#include "torchlore/core/reducer.hpp"

#include <gtest/gtest.h>

#include <ATen/ops/full.h>

#include "support/message.hpp"

namespace torchlore {
namespace {

TEST(Reducer, IdentityLeavesTheTensorAlone) {
  auto t = at::full({}, 3.0);
  Reducer().all_reduce_(t, ReduceOp::sum);
  EXPECT_EQ(t.item<double>(), 3.0);
  EXPECT_TRUE(Reducer().is_identity());
}

TEST(Reducer, CallsTheFunctionWithTheOperation) {
  ReduceOp seen = ReduceOp::sum;
  const Reducer reducer(2, 1, [&](at::Tensor& t, ReduceOp op) {
    seen = op;
    t.mul_(2);
  });
  auto t = at::full({}, 3.0);
  reducer.all_reduce_(t, ReduceOp::max);
  EXPECT_EQ(t.item<double>(), 6.0);
  EXPECT_EQ(seen, ReduceOp::max);
  EXPECT_EQ(reducer.world_size(), 2);
  EXPECT_EQ(reducer.rank(), 1);
}

TEST(Reducer, RefusesARankOutsideTheWorld) {
  EXPECT_EQ(testing::message_of<c10::ValueError>(
                [] { Reducer(2, 2, [](at::Tensor&, ReduceOp) {}); }),
            "rank must lie in [0, 2), but is 2");
}

}  // namespace
}  // namespace torchlore
