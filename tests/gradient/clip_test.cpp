#include "torchlore/gradient/clip.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/utils/clip_grad.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/gradient_pass.hpp"

namespace torchlore {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<at::Tensor> parameters_with_gradients(double size) {
  at::manual_seed(7);
  std::vector<at::Tensor> result;
  for (const int64_t n : {3, 50}) {
    auto p = at::zeros({n, 4}).requires_grad_();
    p.mutable_grad() = at::randn({n, 4}).mul(size);
    result.push_back(p);
  }
  return result;
}

/// One parameter whose gradient has this norm.
std::vector<at::Tensor> with_norm(double norm) {
  auto p = at::zeros({1}, at::kDouble).requires_grad_();
  p.mutable_grad() = at::full({1}, norm, at::kDouble);
  return {p};
}

/// The norm that is left after one step's clipping.
double clipped(Clip& clipper, double norm) {
  const auto parameters = with_norm(norm);
  clipper.clip_(parameters);
  return parameters[0].grad().item<double>();
}

TEST(Clip, ByNormEqualsLibTorch) {
  for (const double p : {1.0, 2.0, 3.0, kInf}) {
    const auto ours = parameters_with_gradients(2.0);
    const auto theirs = parameters_with_gradients(2.0);
    auto clipper = clip::norm(0.7, {.norm_type = p});
    const auto norm = clipper.clip_(ours);
    const double expected = torch::nn::utils::clip_grad_norm_(theirs, 0.7, p);
    EXPECT_NEAR(norm.item<double>(), expected, 1e-5 * expected);
    for (size_t i = 0; i < ours.size(); ++i) {
      EXPECT_TRUE(testing::close(ours[i].grad(), theirs[i].grad()));
    }
  }
}

TEST(Clip, ByValueEqualsLibTorch) {
  const auto ours = parameters_with_gradients(3.0);
  const auto theirs = parameters_with_gradients(3.0);
  auto clipper = clip::value(0.5);
  EXPECT_FALSE(clipper.clip_(ours).defined());
  torch::nn::utils::clip_grad_value_(theirs, 0.5);
  for (size_t i = 0; i < ours.size(); ++i) {
    EXPECT_TRUE(testing::same(ours[i].grad(), theirs[i].grad()));
  }
}

TEST(Clip, DividesByTheDivisorFirst) {
  for (auto clipper : {clip::none(), clip::norm(0.7), clip::value(0.5)}) {
    const auto scaled = parameters_with_gradients(1024.0);
    const auto plain = parameters_with_gradients(1.0);
    clipper.clip_(scaled, {.divisor = at::scalar_tensor(1024.0)});
    clipper.clip_(plain);
    for (size_t i = 0; i < plain.size(); ++i) {
      EXPECT_TRUE(testing::same(scaled[i].grad(), plain[i].grad()));
    }
  }
}

TEST(Clip, TakesTheNormOfAllShards) {
  const Reducer ranks(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::sum) t.mul_(2);  // the other rank holds as much
  });
  const auto parameters = with_norm(3.0);
  auto clipper = clip::norm(1.0);
  EXPECT_NEAR(clipper.clip_(parameters, {.reducer = ranks}).item<double>(), std::sqrt(18.0), 1e-12);
  EXPECT_NEAR(parameters[0].grad().item<double>(), 1 / std::sqrt(2.0), 1e-6);
}

TEST(Clip, FollowsASchedule) {
  auto clipper = clip::norm([](int64_t step) { return step == 1 ? 0.25 : 0.5; });
  EXPECT_NEAR(clipped(clipper, 2.0), 0.5, 1e-6);
  EXPECT_NEAR(clipped(clipper, 2.0), 0.25, 1e-6);
  const auto saved = clipper.state_dict();
  EXPECT_EQ(state_int(saved, "steps"), 2);
  auto other = clip::norm([](int64_t step) { return static_cast<double>(step); });
  other.load_state_dict(saved);
  EXPECT_NEAR(clipped(other, 10.0), 2.0, 1e-6);
}

TEST(Clip, CopiesHaveTheirOwnHistory) {
  auto a = clip::norm([](int64_t step) { return 1.0 + static_cast<double>(step); });
  clipped(a, 1.0);
  auto b = a;
  clipped(b, 1.0);
  EXPECT_EQ(state_int(a.state_dict(), "steps"), 1);
  EXPECT_EQ(state_int(b.state_dict(), "steps"), 2);
  a = b;
  EXPECT_EQ(state_int(a.state_dict(), "steps"), 2);
  a = clip::none();
  EXPECT_TRUE(a.state_dict().empty());
}

TEST(Clip, RefusesANonFiniteNormIfAsked) {
  for (const double bad : {kInf, std::nan("")}) {
    auto clipper = clip::norm(1.0, {.error_if_nonfinite = true});
    const auto parameters = with_norm(bad);
    EXPECT_EQ(testing::message_of([&] { clipper.clip_(parameters); }),
              c10::str("the norm of the gradients is ", bad,
                       ", so they cannot be clipped; look for what made it (a loss scale or a "
                       "learning rate too high), or set error_if_nonfinite = false"));
    EXPECT_TRUE(at::equal(parameters[0].grad(), with_norm(bad)[0].grad()) || std::isnan(bad));
  }
}

// Python: max(0.1, min(1, 0.5 * epoch / 50)) for epochs 0, 9, 10, 11, 20, 49, 50, 100, 150.
TEST(Threshold, EpochRampIsTheFormula) {
  const auto ramp = clip::threshold::epoch_ramp(50, 3);
  const std::vector<std::pair<int64_t, double>> expected = {{0, 0.1},   {9, 0.1},   {10, 0.1},
                                                            {11, 0.11}, {20, 0.2},  {49, 0.49},
                                                            {50, 0.5},  {100, 1.0}, {150, 1.0}};
  for (const auto& [epoch, threshold] : expected) {
    for (int64_t step = 0; step < 3; ++step) {
      EXPECT_NEAR(ramp(epoch * 3 + step), threshold, 1e-15) << epoch;
    }
  }
  const auto other = clip::threshold::epoch_ramp(4, 1, {.low = 0.5, .high = 2.5, .slope = 4});
  EXPECT_EQ(other(0), 0.5);
  EXPECT_EQ(other(2), 2.0);
  EXPECT_EQ(other(3), 2.5);
}

TEST(Threshold, GoesFromOneToTheOther) {
  const auto linear = clip::threshold::linear(1.0, 3.0, 4);
  EXPECT_EQ(linear(0), 1.0);
  EXPECT_EQ(linear(1), 1.5);
  EXPECT_EQ(linear(4), 3.0);
  EXPECT_EQ(linear(1'000), 3.0);
  const auto exponential = clip::threshold::exponential(1.0, 16.0, 4);
  EXPECT_DOUBLE_EQ(exponential(0), 1.0);
  EXPECT_DOUBLE_EQ(exponential(1), 2.0);
  EXPECT_DOUBLE_EQ(exponential(3), 8.0);
  EXPECT_DOUBLE_EQ(exponential(9), 16.0);
}

/// Half of the largest norm so far.
struct HalfOfTheLargest : Clipper {
  double max_norm(const at::Tensor& norm) override {
    largest = std::max(largest, norm.item<double>());
    return largest / 2;
  }
  bool adaptive() const override { return true; }
  double largest = 0;
};

TEST(Clipper, MayBeDerivedFrom) {
  Clip clipper = HalfOfTheLargest{};
  EXPECT_NEAR(clipped(clipper, 4.0), 2.0, 1e-6);
  EXPECT_NEAR(clipped(clipper, 1.0), 1.0, 1e-6);
  auto copy = clipper;
  EXPECT_NEAR(clipped(copy, 6.0), 3.0, 1e-6);
  EXPECT_EQ(dynamic_cast<HalfOfTheLargest*>(clipper.clipper())->largest, 4.0);
  EXPECT_EQ(testing::message_of<c10::ValueError>([] {
              Clip zero = HalfOfTheLargest{};
              zero.clip_(with_norm(0.0));
            }),
            "max_norm must be above 0, but is 0; use infinity to measure without clipping");
}

struct NothingOverridden : Clipper {};

TEST(Clipper, MeasuresOnlyByDefault) {
  Clip clipper = NothingOverridden{};
  const auto parameters = with_norm(3.0);
  EXPECT_EQ(clipper.clip_(parameters).item<double>(), 3.0);
  EXPECT_EQ(parameters[0].grad().item<double>(), 3.0);
  EXPECT_TRUE(clipper.state_dict().empty());
}

TEST(Clip, NamesBadArguments) {
  const auto message = [](const auto& f) { return testing::message_of<c10::ValueError>(f); };
  EXPECT_EQ(message([] { clip::norm(-1.0); }),
            "clip::norm(max_norm) must be above 0, but is -1; use infinity to measure without "
            "clipping");
  EXPECT_EQ(message([] { clip::norm(1.0, {.norm_type = 0}); }),
            "clip::norm(…, norm_type) must be above 0, but is 0");
  EXPECT_EQ(message([] { clip::norm(ThresholdSchedule()); }),
            "clip::norm(schedule) needs a function, but got none");
  EXPECT_EQ(message([] { clip::value(kInf); }),
            "clip::value(clip_value) must be a finite number above 0, but is inf");
  EXPECT_EQ(message([] {
              auto clipper = clip::norm([](int64_t) { return -0.5; });
              clipper.clip_(with_norm(1.0));
            }),
            "the schedule of clip::norm(schedule) gave -0.5 for step 0, but a largest norm must be "
            "above 0; use infinity not to clip");
  EXPECT_EQ(message([] { clip::threshold::epoch_ramp(0, 1); }),
            "epoch_ramp(epochs) must be 1 or more, but is 0");
  EXPECT_EQ(message([] { clip::threshold::epoch_ramp(1, 0); }),
            "epoch_ramp(…, steps_per_epoch) must be 1 or more, but is 0");
  EXPECT_EQ(message([] { clip::threshold::epoch_ramp(1, 1, {.low = 0}); }),
            "low must be a finite number above 0, but is 0");
  EXPECT_EQ(message([] { clip::threshold::epoch_ramp(1, 1, {.low = 0.5, .high = 0.2}); }),
            "high must lie in [0.5, inf], but is 0.2");
  EXPECT_EQ(message([] { clip::threshold::epoch_ramp(1, 1, {.slope = -1}); }),
            "slope must be a finite number above 0, but is -1");
  EXPECT_EQ(message([] { clip::threshold::linear(0, 1, 5); }),
            "the first threshold must be a finite number above 0, but is 0");
  EXPECT_EQ(message([] { clip::threshold::exponential(1, kInf, 5); }),
            "the last threshold must be a finite number above 0, but is inf");
  EXPECT_EQ(message([] { clip::threshold::linear(1, 1, 0); }),
            "the steps of a threshold schedule must be 1 or more, but is 0");
  auto clipper = clip::norm([](int64_t) { return 1.0; });
  EXPECT_EQ(message([&] { clipper.load_state_dict({}); }),
            "the saved state has no 'steps'; it has: ");
  EXPECT_EQ(message([&] {
              clipper.load_state_dict({{"steps", state_value(int64_t{-1})}});
            }),
            "steps must be a finite number, 0 or above, but is -1");
}

}  // namespace
}  // namespace torchlore
