#include "torchlore/precision/precision_fallback.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/precision/loss_scaler.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

/// A scaler that is told what each step found.
struct Scaler {
  explicit Scaler(LossScalerOptions options = {}) : scaler(std::move(options)) {
    scaler.scale(at::ones({}));
  }
  /// One update with the step skipped or not.
  bool update(PrecisionFallback& precision, bool stepped) {
    if (!precision.fallen_back()) scaler.update_from(at::full({}, stepped ? 0.0F : 1.0F));
    return precision.update(scaler, stepped);
  }
  LossScaler scaler;
};

TEST(PrecisionFallback, FollowsTheRuleOfALowScale) {
  std::vector<PrecisionChange> changes;
  PrecisionFallback precision(
      {.skipped_in_a_row = 0, .on_change = [&](const auto& c) { changes.push_back(c); }});
  Scaler scaler({.init_scale = 5e-5});
  EXPECT_EQ(precision.dtype(), at::kHalf);
  EXPECT_FALSE(scaler.update(precision, false));  // 2.5e-5
  EXPECT_FALSE(scaler.update(precision, false));  // 1.25e-5: not below
  EXPECT_FALSE(scaler.update(precision, false));  // 6.25e-6: one
  EXPECT_FALSE(scaler.update(precision, true));   // as before: two
  EXPECT_TRUE(scaler.update(precision, true));    // three
  EXPECT_TRUE(precision.fallen_back());
  EXPECT_EQ(precision.dtype(), at::kBFloat16);
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].step, 5);
  EXPECT_EQ(changes[0].from, at::kHalf);
  EXPECT_EQ(changes[0].to, at::kBFloat16);
  EXPECT_EQ(changes[0].reason, "the loss scale was below 1e-05 for 3 steps");
}

TEST(PrecisionFallback, ARiseOfTheScaleStartsTheCountAnew) {
  PrecisionFallback precision({.skipped_in_a_row = 0});
  Scaler scaler({.init_scale = 1.5e-5, .growth_interval = 2});
  for (int i = 0; i < 6; ++i) {
    EXPECT_FALSE(scaler.update(precision, false)) << i;  // 7.5e-6
    EXPECT_FALSE(scaler.update(precision, true)) << i;
    EXPECT_FALSE(scaler.update(precision, true)) << i;  // 1.5e-5 again
  }
}

TEST(PrecisionFallback, CountsSkippedStepsInARow) {
  PrecisionChange change;
  PrecisionFallback precision({.on_change = [&](const auto& c) { change = c; }});
  Scaler scaler;
  for (int i = 0; i < 9; ++i) EXPECT_FALSE(scaler.update(precision, false));
  EXPECT_FALSE(scaler.update(precision, true));
  for (int i = 0; i < 9; ++i) EXPECT_FALSE(scaler.update(precision, false));
  EXPECT_TRUE(scaler.update(precision, false));
  EXPECT_EQ(change.reason, "10 steps in a row were skipped");
}

TEST(PrecisionFallback, CountsOverflowsAtTheScalersFloor) {
  PrecisionChange change;
  PrecisionFallback precision(
      {.skipped_in_a_row = 0, .on_change = [&](const auto& c) { change = c; }});
  Scaler scaler({.init_scale = 2, .min_scale = 1});
  EXPECT_FALSE(scaler.update(precision, false));  // to 1
  EXPECT_FALSE(scaler.update(precision, false));
  EXPECT_FALSE(scaler.update(precision, false));
  EXPECT_TRUE(scaler.update(precision, false));
  EXPECT_EQ(change.reason, "gradients overflowed at the smallest loss scale for 3 steps");
}

TEST(PrecisionFallback, ReturnsAfterAWhileAndLaterEachTime) {
  std::vector<std::string> reasons;
  PrecisionFallback precision({.skipped_in_a_row = 1,
                               .to = at::kFloat,
                               .return_after = 4,
                               .return_backoff = 1.5,
                               .return_scale = 8,
                               .on_change = [&](const auto& c) { reasons.push_back(c.reason); }});
  Scaler scaler;
  const auto steps_until_return = [&] {
    int steps = 0;
    while (precision.fallen_back() && steps < 100) {
      scaler.update(precision, true);
      ++steps;
    }
    return steps;
  };
  scaler.update(precision, false);
  EXPECT_FALSE(precision.autocast());
  EXPECT_EQ(steps_until_return(), 4);
  EXPECT_EQ(scaler.scaler.get_scale(), 8);
  scaler.update(precision, false);
  EXPECT_EQ(steps_until_return(), 6);
  scaler.update(precision, false);
  EXPECT_EQ(steps_until_return(), 9);
  for (int i = 0; i < 4; ++i) scaler.update(precision, true);  // float16 goes well: forgiven
  scaler.update(precision, false);
  EXPECT_EQ(steps_until_return(), 4);
  EXPECT_EQ(reasons[0], "1 steps in a row were skipped");
  EXPECT_EQ(reasons[1], "4 steps have gone by");

  PrecisionFallback forever({.skipped_in_a_row = 1, .return_after = 0});
  Scaler other;
  other.update(forever, false);
  for (int i = 0; i < 50; ++i) other.update(forever, true);
  EXPECT_TRUE(forever.fallen_back());
}

TEST(PrecisionFallback, SavesWhereItIs) {
  PrecisionFallback precision({.skipped_in_a_row = 3, .return_after = 5});
  Scaler scaler;
  for (int i = 0; i < 5; ++i) scaler.update(precision, false);
  PrecisionFallback loaded({.skipped_in_a_row = 3, .return_after = 5});
  loaded.load_state_dict(precision.state_dict());
  EXPECT_TRUE(loaded.fallen_back());
  Scaler other;
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(other.update(loaded, true), scaler.update(precision, true)) << i;
  }
  EXPECT_FALSE(loaded.fallen_back());
  EXPECT_THROW(loaded.load_state_dict({}), c10::ValueError);
}

TEST(PrecisionFallback, AStepThatGoesThroughStartsTheCountAtTheFloorAnew) {
  PrecisionFallback precision({.skipped_in_a_row = 0});
  Scaler scaler({.init_scale = 1, .min_scale = 1});
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(scaler.update(precision, false)) << i;
    EXPECT_FALSE(scaler.update(precision, false)) << i;
    EXPECT_FALSE(scaler.update(precision, true)) << i;
  }
}

TEST(PrecisionFallback, OnlyStepsThatWentThroughBringItBack) {
  PrecisionFallback precision({.skipped_in_a_row = 1, .return_after = 2});
  Scaler scaler;
  EXPECT_TRUE(scaler.update(precision, false));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(scaler.update(precision, false)) << i;
  EXPECT_FALSE(scaler.update(precision, true));
  EXPECT_TRUE(scaler.update(precision, true));
  EXPECT_FALSE(precision.fallen_back());
}

TEST(PrecisionFallback, ComesBackWithItsCountsAtZero) {
  for (const bool at_floor : {false, true}) {
    PrecisionFallback precision(
        {.steps = 2, .skipped_in_a_row = at_floor ? 0 : 2, .return_after = 1, .return_scale = 1});
    Scaler scaler({.init_scale = 1, .min_scale = at_floor ? 1 : 0x1p-126});
    EXPECT_FALSE(scaler.update(precision, false));
    EXPECT_TRUE(scaler.update(precision, false));
    EXPECT_TRUE(scaler.update(precision, true));
    EXPECT_FALSE(precision.fallen_back());
    EXPECT_FALSE(scaler.update(precision, false)) << at_floor;
    EXPECT_TRUE(scaler.update(precision, false)) << at_floor;
  }
}

TEST(PrecisionFallback, SavesTheCountOfEachRule) {
  const auto goes_on = [](PrecisionFallbackOptions options, LossScalerOptions scaling,
                          bool last_stepped) {
    PrecisionFallback precision(options), loaded(options);
    Scaler scaler(scaling);
    scaler.update(precision, false);
    scaler.update(precision, false);
    loaded.load_state_dict(precision.state_dict());
    EXPECT_FALSE(loaded.fallen_back());
    EXPECT_TRUE(scaler.update(loaded, last_stepped));
  };
  goes_on({.skipped_in_a_row = 0}, {.init_scale = 1, .min_scale = 1}, false);
  goes_on({.skipped_in_a_row = 0}, {.init_scale = 1e-5}, true);
  goes_on({.skipped_in_a_row = 3}, {}, false);
}

TEST(PrecisionFallback, RanksFallBackTogether) {
  PrecisionChange change;
  PrecisionFallback precision({.on_change = [&](const auto& c) { change = c; },
                               .reducer = {2, 0, [](at::Tensor& leaves, ReduceOp op) {
                                             EXPECT_EQ(op, ReduceOp::max);
                                             leaves.fill_(1);
                                           }}});
  Scaler scaler;
  EXPECT_TRUE(scaler.update(precision, true));
  EXPECT_EQ(change.reason, "another rank fell back");
}

TEST(PrecisionFallback, ChecksItsOptions) {
  const auto text = [](PrecisionFallbackOptions options) {
    return message_of<c10::ValueError>([&] { PrecisionFallback precision(std::move(options)); });
  };
  EXPECT_EQ(text({.scale_below = -1}),
            "scale_below must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(text({.steps = 0}), "steps must be 1 or more, but is 0");
  EXPECT_EQ(text({.skipped_in_a_row = -1}), "skipped_in_a_row must be 0 or more, but is -1");
  EXPECT_EQ(text({.to = at::kHalf}),
            "float16 can fall back to BFloat16 or Float, but `to` is Half");
  EXPECT_EQ(text({.return_after = -1}), "return_after must be 0 or more, but is -1");
  EXPECT_EQ(text({.return_backoff = 0.5}),
            "return_backoff must be a finite number, 1 or above, but is 0.5");
  EXPECT_EQ(text({.return_scale = 0}), "return_scale must be a finite number above 0, but is 0");
  EXPECT_EQ(message_of<c10::ValueError>([] { Precision::bf16().with_fallback(); }),
            "with_fallback is for Precision::fp16() with an enabled loss scaler: nothing else has "
            "a narrower range than what it would fall back to");
}

/// A model whose activations overflow float16 for large weights: y = 300 (w · x), loss y².
struct Wide {
  Wide() {
    at::set_num_threads(1);
    at::manual_seed(1);
    layer = torch::nn::Linear(4, 4);
    optimizer = std::make_unique<torch::optim::SGD>(layer->parameters(), 1e-4);
    x = at::ones({2, 4});
  }
  at::Tensor loss(double factor) {
    return layer->forward(x * factor).to(at::kFloat).square().mean() / (factor * factor);
  }
  torch::nn::Linear layer{nullptr};
  std::unique_ptr<torch::optim::SGD> optimizer;
  at::Tensor x;
};

TEST(StepFallback, LeavesFloat16AndComesBack) {
  Wide model;
  std::vector<PrecisionChange> changes;
  TrainingStep step(
      *model.optimizer,
      {.precision =
           Precision::fp16({.init_scale = 1024})
               .with_fallback({.skipped_in_a_row = 2,
                               .return_after = 3,
                               .on_change = [&](const auto& c) { changes.push_back(c); }})});
  constexpr double kOverflows = 1e6;
  EXPECT_TRUE(step([&] { return model.loss(1); }).stepped());
  EXPECT_TRUE(step([&] { return model.loss(kOverflows); }).skipped());
  EXPECT_FALSE(step.fallback()->fallen_back());
  EXPECT_TRUE(step([&] { return model.loss(kOverflows); }).skipped());
  EXPECT_TRUE(step.fallback()->fallen_back());
  const auto saved = step.state_dict();
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(step([&] { return model.loss(kOverflows); }).stepped()) << "in bfloat16";
  }
  EXPECT_FALSE(step.fallback()->fallen_back());
  EXPECT_EQ(step.scaler()->get_scale(), 1024);
  ASSERT_EQ(changes.size(), 2U);
  step.load_state_dict(saved);
  EXPECT_TRUE(step.fallback()->fallen_back());
}

TEST(StepFallback, FallenBackItEqualsTheOtherPrecision) {
  for (const auto to : {at::kBFloat16, at::kFloat}) {
    Wide fallen, other;
    TrainingStep falls(*fallen.optimizer,
                       {.precision = Precision::fp16().with_fallback(
                            {.skipped_in_a_row = 1, .to = to, .return_after = 0}),
                        .clip = clip::norm(0.01)});
    TrainingStep plain(*other.optimizer,
                       {.precision = to == at::kFloat ? Precision::fp32() : Precision::bf16(),
                        .clip = clip::norm(0.01)});
    falls([&] { return fallen.loss(1e6); });
    for (int i = 0; i < 5; ++i) {
      const auto a = falls([&] { return fallen.loss(3); });
      const auto b = plain([&] { return other.loss(3); });
      EXPECT_EQ(a.loss(), b.loss());
      EXPECT_EQ(a.grad_norm(), b.grad_norm());
    }
    EXPECT_TRUE(same(fallen.layer->weight, other.layer->weight));
  }
}

}  // namespace
}  // namespace torchlore
