#include "torchlore/core/step_result.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

namespace torchlore {
namespace {

using Outcome = StepResult::Outcome;

TEST(StepResult, GivesTheMeanOfALoss) {
  EXPECT_EQ(StepResult(Outcome::stepped, {at::full({}, 6.0), 4}, {}).loss(), 1.5);
  EXPECT_EQ(StepResult(Outcome::stepped, {at::full({}, 6.0), at::full({}, 4)}, {}).loss(), 1.5);
  EXPECT_EQ(StepResult(Outcome::stepped, {at::full({}, 6.0), 1}, {}).loss(), 6.0);
}

TEST(StepResult, TellsWhatWasNotMeasuredByNaN) {
  const StepResult nothing;
  EXPECT_TRUE(std::isnan(nothing.loss()));
  EXPECT_TRUE(std::isnan(nothing.grad_norm()));
  EXPECT_FALSE(nothing.loss_tensor().defined());
  EXPECT_TRUE(std::isnan(StepResult(Outcome::accumulated, {at::zeros({}), 0}, {}).loss()));
  EXPECT_EQ(StepResult(Outcome::stepped, {}, at::full({}, 2.0)).grad_norm(), 2.0);
}

TEST(StepResult, HoldsNoGraph) {
  const auto loss = at::ones({}).requires_grad_() * 2;
  EXPECT_FALSE(StepResult(Outcome::stepped, {loss, 1}, {}).loss_tensor().requires_grad());
  EXPECT_FALSE(StepResult(Outcome::stepped, {loss, 2}, {}).loss_tensor().requires_grad());
}

TEST(StepResult, NamesItsOutcome) {
  EXPECT_TRUE(StepResult(Outcome::stepped, {}, {}).stepped());
  EXPECT_TRUE(StepResult(Outcome::skipped, {}, {}).skipped());
  EXPECT_FALSE(StepResult(Outcome::accumulated, {}, {}).stepped());
  EXPECT_EQ(StepResult().outcome(), Outcome::nothing);
}

}  // namespace
}  // namespace torchlore
