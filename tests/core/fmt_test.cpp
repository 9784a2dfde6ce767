#include "torchlore/fmt.hpp"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

namespace torchlore {
namespace {

TEST(Fmt, WritesNames) {
  EXPECT_EQ(fmt::format("{} {} {}", ReduceOp::sum, ReduceOp::max, ReduceOp::min), "sum max min");
  EXPECT_EQ(fmt::format("[{:>8}]", StepResult::Outcome::skipped), "[ skipped]");
}

TEST(Fmt, WritesAStepResultWithTheNumbersAsAsked) {
  const StepResult result(StepResult::Outcome::stepped, Loss{at::full({}, 3.0), 2},
                          at::full({}, 1.25));
  EXPECT_EQ(fmt::format("{}", result), "stepped, loss 1.5, gradient norm 1.25");
  EXPECT_EQ(fmt::format("{:.3f}", result), "stepped, loss 1.500, gradient norm 1.250");
  EXPECT_EQ(fmt::format("{}", StepResult()), "nothing, loss nan, gradient norm nan");
}

}  // namespace
}  // namespace torchlore
