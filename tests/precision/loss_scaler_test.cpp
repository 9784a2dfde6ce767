#include "torchlore/precision/loss_scaler.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/scaled_step.hpp"
#include "torchlore/gradient/clip_grad.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using testing::close;
using testing::message_of;
using testing::same;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

at::Tensor parameter(const at::Tensor& value) { return value.clone().requires_grad_(true); }

torch::optim::SGD sgd(std::vector<at::Tensor> parameters, double lr = 1.0) {
  return torch::optim::SGD(std::move(parameters), torch::optim::SGDOptions(lr));
}

/// An optimizer that takes the divisor, and keeps what it was given.
class ScaledSgd : public torch::optim::SGD, public ScaledStep {
 public:
  using SGD::SGD;
  void step_scaled(const at::Tensor& divisor) override {
    divisors.push_back(divisor.item<double>());
    for (const auto& p : param_groups()[0].params()) {
      if (p.grad().defined()) p.mutable_grad() = p.grad().div(divisor);
    }
    step();
  }
  std::vector<double> divisors;
};

/// One parameter of ones, its optimizer, and a scaler that has scaled its sum.
template <typename Optimizer = torch::optim::SGD>
struct Loop {
  explicit Loop(LossScalerOptions options = {}) : scaler(std::move(options)) {
    scaler.scale(weight.sum()).backward();
  }
  void set_gradient(float value) { weight.mutable_grad() = at::full({3}, value); }
  /// One whole step with this (scaled) gradient; returns whether it was made.
  bool step(float gradient) {
    set_gradient(gradient);
    const bool stepped = scaler.step(optimizer);
    scaler.update();
    return stepped;
  }
  int64_t tracker() const { return state_int(scaler.state_dict(), "_growth_tracker"); }

  at::Tensor weight = parameter(at::ones({3}));
  Optimizer optimizer{{weight}, torch::optim::SGDOptions(1.0)};
  LossScaler scaler;
};

// --- The scale -----------------------------------------------------------------------------------

TEST(LossScaler, StepsAsWithoutAScaler) {
  Loop<> s;
  EXPECT_TRUE(same(s.weight.grad(), at::full({3}, 65536.0f)));
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  s.scaler.update();
  EXPECT_TRUE(same(s.weight, at::zeros({3})));
  EXPECT_TRUE(same(s.weight.grad(), at::ones({3})));
  EXPECT_EQ(s.scaler.get_scale(), 65536);
  EXPECT_EQ(s.tracker(), 1);
}

TEST(LossScaler, SkipsTheStepAndBacksOffOnOverflow) {
  for (const float bad : {kInf, -kInf, kNan}) {
    Loop<> s;
    EXPECT_FALSE(s.step(bad));
    EXPECT_TRUE(same(s.weight, at::ones({3})));
    EXPECT_EQ(s.scaler.get_scale(), 32768);
    EXPECT_EQ(s.tracker(), 0);
  }
}

TEST(LossScaler, GrowsAfterTheInterval) {
  Loop<> s({.init_scale = 4.0, .growth_factor = 2.0, .backoff_factor = 0.25, .growth_interval = 2});
  s.step(0);
  EXPECT_EQ(s.scaler.get_scale(), 4);
  s.step(0);
  EXPECT_EQ(s.scaler.get_scale(), 8);
  EXPECT_EQ(s.tracker(), 0);
  s.step(kInf);
  EXPECT_EQ(s.scaler.get_scale(), 2);
}

TEST(LossScaler, ScaleIsInitTimesGrowthsTimesBackoffs) {
  Loop<> s({.init_scale = 1024.0, .growth_interval = 3});
  auto control = parameter(at::ones({3}));
  auto plain = sgd({control});
  int64_t clean = 0, growths = 0, backoffs = 0;
  for (int64_t i = 0; i < 60; ++i) {
    const bool overflow = (i * 7) % 11 == 3;
    const auto gradient = 1.0f / static_cast<float>(i + 1);
    const auto scale = static_cast<float>(s.scaler.get_scale());
    EXPECT_EQ(s.step(overflow ? kInf : gradient * scale), !overflow);
    if (!overflow) {
      control.mutable_grad() = at::full({3}, gradient);
      plain.step();
    }
    clean = overflow ? 0 : clean + 1;
    backoffs += overflow;
    if (clean == 3) {
      clean = 0;
      ++growths;
    }
    EXPECT_EQ(s.scaler.get_scale(),
              1024 * std::exp2(static_cast<double>(growths) - static_cast<double>(backoffs)));
    EXPECT_TRUE(same(s.weight, control));
  }
  EXPECT_GT(growths, 5);
  EXPECT_GT(backoffs, 4);
}

TEST(LossScaler, SettersTakeEffectAtTheNextUpdate) {
  Loop<> s;
  s.scaler.set_growth_factor(3.0);
  s.scaler.set_backoff_factor(0.125);
  s.scaler.set_growth_interval(1);
  EXPECT_EQ(s.scaler.get_growth_factor(), 3.0);
  EXPECT_EQ(s.scaler.get_backoff_factor(), 0.125);
  EXPECT_EQ(s.scaler.get_growth_interval(), 1);
  s.step(0);
  EXPECT_EQ(s.scaler.get_scale(), 3 * 65536);
  s.step(kInf);
  EXPECT_EQ(s.scaler.get_scale(), 3 * 8192);
}

TEST(LossScaler, TakesANewScale) {
  Loop<> s;
  s.scaler.update(128.0);
  EXPECT_EQ(s.scaler.get_scale(), 128);
  auto given = at::full({1}, 64.0, at::kDouble);
  s.scaler.update(given);
  given.fill_(1);
  EXPECT_EQ(s.scaler.get_scale(), 64);
}

TEST(LossScaler, ANewScaleForgetsTheOverflowsOfTheIteration) {
  Loop<> s;
  s.set_gradient(kInf);
  EXPECT_FALSE(s.scaler.step(s.optimizer));
  s.scaler.update(256.0);
  EXPECT_EQ(s.scaler.get_scale(), 256);
  EXPECT_TRUE(s.step(256));
}

TEST(LossScaler, StaysWithinItsLimits) {
  Loop<> s({.init_scale = 8.0, .growth_interval = 1, .min_scale = 3.0, .max_scale = 12.0});
  s.step(0);
  EXPECT_EQ(s.scaler.get_scale(), 12);
  EXPECT_FALSE(s.scaler.at_floor());
  s.step(kInf);
  EXPECT_EQ(s.scaler.get_scale(), 6);
  s.step(kInf);
  EXPECT_EQ(s.scaler.get_scale(), 3);
  EXPECT_FALSE(s.scaler.at_floor());  // this overflow could still lower the scale
  s.step(kInf);
  EXPECT_EQ(s.scaler.get_scale(), 3);
  EXPECT_TRUE(s.scaler.at_floor());
  s.step(0);
  EXPECT_FALSE(s.scaler.at_floor());
  const auto found_inf = at::ones({});
  s.scaler.update_from(found_inf);  // from 6 to 3
  EXPECT_FALSE(s.scaler.at_floor());
  s.scaler.update_from(found_inf);
  found_inf.zero_();
  EXPECT_TRUE(s.scaler.at_floor());
  s.scaler.update(at::scalar_tensor(1000.0));
  EXPECT_FALSE(s.scaler.at_floor());
  EXPECT_EQ(s.scaler.get_scale(), 12);
}

TEST(LossScaler, NeverFallsToAScaleWhoseReciprocalOverflows) {
  Loop<> s({.init_scale = 0x1p-125});
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(s.step(kInf));
  EXPECT_EQ(s.scaler.get_scale(), 0x1p-126);
  EXPECT_TRUE(s.scaler.at_floor());
  EXPECT_TRUE(s.step(0x1p-126f));
  EXPECT_TRUE(same(s.weight, at::zeros({3})));
}

/// The scale after each of these steps, `x` an overflow, with backoff 0.5 and growth 2.
std::vector<double> scales(const LossScalerOptions& options, const std::string& steps) {
  Loop<> s(options);
  std::vector<double> result;
  for (const char step : steps) {
    EXPECT_EQ(s.step(step == 'x' ? kInf : 0), step != 'x');
    result.push_back(s.scaler.get_scale());
  }
  return result;
}

// The expected scales are worked out by hand from DeepSpeed's rule.
TEST(LossScaler, HysteresisToleratesTheFirstOverflows) {
  const LossScalerOptions options{.init_scale = 64.0, .growth_interval = 3, .hysteresis = 2};
  // Tolerated once; from then on every overflow backs off, until the scale has grown.
  EXPECT_EQ(scales(options, "x.x.x...x.x"),
            (std::vector<double>{64, 64, 32, 32, 16, 16, 16, 32, 32, 32, 16}));
}

TEST(LossScaler, ConsecutiveHysteresisForgivesAtEveryCleanStep) {
  const LossScalerOptions options{
      .init_scale = 64.0, .growth_interval = 100, .hysteresis = 2, .consecutive_hysteresis = true};
  EXPECT_EQ(scales(options, "x.x.xxx.xx"),
            (std::vector<double>{64, 64, 64, 64, 64, 32, 16, 16, 16, 8}));
}

TEST(LossScaler, AToleratedOverflowRestartsTheGrowthInterval) {
  const LossScalerOptions options{.init_scale = 64.0, .growth_interval = 2, .hysteresis = 3};
  EXPECT_EQ(scales(options, ".x...x."), (std::vector<double>{64, 64, 64, 128, 128, 128, 128}));
}

// --- Scaling outputs -----------------------------------------------------------------------------

TEST(LossScaler, ScalesOneOutputOrSeveral) {
  LossScaler scaler({.init_scale = 4.0});
  EXPECT_TRUE(same(scaler.scale(at::ones({2})), at::full({2}, 4.0f)));
  const auto several = scaler.scale(std::vector{at::ones({2}, at::kDouble), at::ones({})});
  EXPECT_TRUE(same(several[0], at::full({2}, 4.0, at::kDouble)));
  EXPECT_TRUE(same(several[1], at::full({}, 4.0f)));
}

TEST(LossScaler, KeepsASmallHalfGradientThatWouldVanish) {
  const auto run = [](bool enabled) {
    LossScaler scaler({.enabled = enabled});
    auto weight = parameter(at::ones({1}));
    auto optimizer = sgd({weight});
    scaler.scale((weight.to(at::kHalf) * 1e-4).to(at::kFloat).sum() * 1e-5).backward();
    scaler.step(optimizer);
    return weight.grad().item<double>();
  };
  EXPECT_EQ(run(false), 0);
  EXPECT_NEAR(run(true), 1e-9, 1e-11);
}

TEST(LossScaler, GivesTheScaleAsATensor) {
  LossScaler scaler({.init_scale = 4.0});
  const auto scale = scaler.scale_tensor(at::kCPU);
  EXPECT_TRUE(same(scale, at::full({}, 4.0f)));
  EXPECT_EQ(scale.dim(), 0);
  LossScaler disabled({.enabled = false});
  EXPECT_TRUE(same(disabled.scale_tensor(at::kCPU), at::ones({})));
}

// --- Unscaling -----------------------------------------------------------------------------------

TEST(LossScaler, UnscalesMixedDtypesAndStrides) {
  Loop<> s({.init_scale = 8.0});
  const auto grad = at::arange(12, at::kFloat).reshape({3, 4}) - 5;
  std::vector<at::Tensor> parameters;
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const auto& g : {grad, grad.t(), grad.slice(1, 0, 4, 2)}) {
      auto p = parameter(at::zeros(g.sizes(), dtype));
      p.mutable_grad() = at::empty_strided(g.sizes(), g.strides(), dtype).copy_(g);
      parameters.push_back(p);
    }
  }
  parameters.push_back(parameter(at::zeros({2})));  // no gradient
  auto optimizer = sgd(parameters);
  s.scaler.unscale_(optimizer);
  for (const auto& p : parameters) {
    if (!p.grad().defined()) continue;
    const auto original = p.grad().size(0) == 4   ? grad.t()
                          : p.grad().size(1) == 2 ? grad.slice(1, 0, 4, 2)
                                                  : grad;
    EXPECT_TRUE(same(p.grad(), (original / 8).to(p.scalar_type())));
  }
  EXPECT_TRUE(s.scaler.step(optimizer));
}

TEST(LossScaler, SeesOneBadElementWhereverItIs) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const float bad : {kInf, -kInf, kNan}) {
      for (const int64_t place : {0, 4999, 5000, 9999}) {  // in the first or the second gradient
        Loop<> s;
        auto a = parameter(at::zeros({5000}));
        auto b = parameter(at::zeros({5000}, dtype));
        a.mutable_grad() = at::ones({5000});
        b.mutable_grad() = at::ones({5000}, dtype);
        (place < 5000 ? a : b).grad()[place % 5000] = bad;
        auto optimizer = sgd({a, b});
        EXPECT_FALSE(s.scaler.step(optimizer)) << dtype << " " << bad << " at " << place;
        EXPECT_TRUE(same(a, at::zeros({5000})));
      }
    }
  }
}

TEST(LossScaler, UnscalesSparseGradients) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    Loop<> s({.init_scale = 8.0});
    auto weight = parameter(at::zeros({4}, dtype));
    const auto places = at::tensor({1, 3, 1}, at::kLong).unsqueeze(0);
    const auto values = at::tensor({8.0f, 16.0f, 24.0f}).to(dtype);
    weight.mutable_grad() = at::sparse_coo_tensor(places, values, {4});
    auto optimizer = sgd({weight});
    s.scaler.unscale_(optimizer);
    EXPECT_TRUE(same(weight.grad().to_dense(), at::tensor({0.0f, 4.0f, 0.0f, 2.0f}).to(dtype)));
    weight.grad()._values()[1] = kInf;
    s.scaler.update();
    EXPECT_FALSE(s.scaler.step(optimizer));
  }
}

TEST(LossScaler, SeesHalfDuplicatesThatOverflowWhenTheyAreAdded) {
  Loop<ScaledSgd> s;
  auto weight = parameter(at::zeros({4}, at::kHalf));
  const auto places = at::tensor({1, 1}, at::kLong).unsqueeze(0);
  weight.mutable_grad() = at::sparse_coo_tensor(places, at::full({2}, 40000.0).to(at::kHalf), {4});
  ScaledSgd optimizer({weight}, torch::optim::SGDOptions(1.0));
  EXPECT_FALSE(s.scaler.step(optimizer));
  EXPECT_TRUE(weight.grad().is_coalesced());
}

TEST(LossScaler, ClipsAfterUnscaling) {
  Loop<> s;
  s.scaler.unscale_(s.optimizer);
  const auto norm = clip_grad_norm_(s.weight, 0.5);
  EXPECT_TRUE(close(norm, at::full({}, std::sqrt(3.0f))));
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  EXPECT_TRUE(close(s.weight, at::full({3}, 1 - 0.5f / std::sqrt(3.0f))));
}

TEST(LossScaler, ServesAGradientPenalty) {
  auto weight = parameter(at::full({3}, 2.0f));
  auto optimizer = sgd({weight}, 0.1);
  LossScaler scaler;
  const auto loss = weight.square().sum();
  auto grad = torch::autograd::grad({scaler.scale(loss)}, {weight}, {}, std::nullopt, true)[0];
  grad = grad / scaler.scale_tensor(at::kCPU);
  scaler.scale(loss + grad.square().sum()).backward();  // w² + (2w)²: the gradient is 10 w
  EXPECT_TRUE(scaler.step(optimizer));
  EXPECT_TRUE(close(weight.grad(), at::full({3}, 20.0f)));
}

TEST(LossScaler, Accumulates) {
  Loop<> s;
  s.scaler.scale(2 * s.weight.sum()).backward();
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  s.scaler.update();
  EXPECT_TRUE(same(s.weight, at::full({3}, -2.0f)));
}

TEST(LossScaler, TrainsAHalfPrecisionForwardUnderAutocast) {
  auto weight = parameter(at::full({4, 1}, 0.5f));
  auto optimizer = sgd({weight}, 0.1);
  LossScaler scaler({.init_scale = 0x1p30});
  const auto x = at::eye(4);
  int64_t skipped = 0;
  for (int i = 0; i < 60; ++i) {
    optimizer.zero_grad();
    at::Tensor loss;
    {
      const Autocast amp(at::kCPU, at::kHalf);
      loss = at::mse_loss(x.mm(weight), at::ones({4, 1}));
    }
    scaler.scale(loss).backward();
    skipped += !scaler.step(optimizer);
    scaler.update();
  }
  EXPECT_GT(skipped, 5);  // 2^30 overflows float16 at first
  EXPECT_TRUE(at::allclose(weight, at::ones({4, 1}), 0, 0.05));
}

// --- Several models and optimizers ---------------------------------------------------------------

TEST(LossScaler, OnlyTheOptimizerThatOverflowedSkips) {
  LossScaler scaler({.init_scale = 4.0, .growth_interval = 1});
  auto a = parameter(at::ones({2})), b = parameter(at::ones({2}));
  auto first = sgd({a}), second = sgd({b});
  scaler.scale(a.sum() + 2 * b.sum()).backward();
  a.grad()[0] = kInf;
  EXPECT_FALSE(scaler.step(first));
  EXPECT_TRUE(scaler.step(second));
  scaler.update();
  EXPECT_TRUE(same(a, at::ones({2})));
  EXPECT_TRUE(same(b, at::full({2}, -1.0f)));
  EXPECT_EQ(scaler.get_scale(), 2);
  EXPECT_TRUE(scaler.step(second));  // the next iteration
  scaler.update();
  EXPECT_EQ(scaler.get_scale(), 4);
}

// --- Unscale and clip in one pass ----------------------------------------------------------------

std::vector<at::Tensor> uneven_parameters(double scale) {
  std::vector<at::Tensor> parameters;
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kFloat}) {
    const auto size = static_cast<int64_t>(parameters.size() * 1000 + 37);
    auto p = parameter(at::zeros({size}, dtype));
    p.mutable_grad() = (at::sin(at::arange(size, at::kDouble)) * scale).to(dtype);
    parameters.push_back(p);
  }
  return parameters;
}

TEST(LossScaler, UnscaleAndClipEqualsTheTwoCalls) {
  for (const double norm_type : {2.0, 1.0, static_cast<double>(kInf), 3.0}) {
    for (const double max_norm : {0.1, 1e9, static_cast<double>(kInf)}) {
      for (const double scale : {1.0, 65536.0, 0x1p-10}) {
        const auto one = uneven_parameters(scale), two = uneven_parameters(scale);
        auto first = sgd(one), second = sgd(two);
        LossScaler scaler({.init_scale = scale});
        scaler.scale(at::ones({}));
        const auto norm = scaler.unscale_and_clip_(first, max_norm, norm_type);
        scaler.unscale_(second);
        const auto expected = clip_grad_norm_(two, max_norm, {.norm_type = norm_type});
        if (norm_type == 3.0) {
          EXPECT_TRUE(close(norm, expected));
        } else {
          EXPECT_TRUE(same(norm, expected));
        }
        for (size_t i = 0; i < one.size(); ++i) {
          if (norm_type == 3.0) {
            EXPECT_TRUE(close(one[i].grad(), two[i].grad()));
          } else {
            EXPECT_TRUE(same(one[i].grad(), two[i].grad()));
          }
        }
        EXPECT_TRUE(scaler.step(first));
      }
    }
  }
}

TEST(LossScaler, UnscaleAndClipSeesAnOverflow) {
  for (const float bad : {kInf, kNan}) {
    Loop<> s;
    s.weight.grad()[1] = bad;
    EXPECT_FALSE(std::isfinite(s.scaler.unscale_and_clip_(s.optimizer, 1.0).item<float>()));
    EXPECT_FALSE(s.scaler.step(s.optimizer));
    s.scaler.update();
    EXPECT_TRUE(same(s.weight, at::ones({3})));
    EXPECT_EQ(s.scaler.get_scale(), 32768);
  }
}

TEST(LossScaler, StepClippedEqualsUnscaleClipAndStep) {
  const auto one = uneven_parameters(65536), two = uneven_parameters(65536);
  auto first = sgd(one), second = sgd(two);
  LossScaler scaler;
  scaler.scale(at::ones({}));
  const auto result = scaler.step_clipped(first, 0.5);
  EXPECT_TRUE(result.stepped);
  EXPECT_TRUE(same(result.norm, scaler.unscale_and_clip_(second, 0.5)));
  scaler.step(second);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(same(one[i], two[i]));
}

TEST(LossScaler, StepClippedLeavesGradientsAloneWhenItSkips) {
  Loop<> s;
  s.weight.grad()[1] = kInf;
  const auto result = s.scaler.step_clipped(s.optimizer, 1.0);
  EXPECT_FALSE(result.stepped);
  EXPECT_TRUE(same(s.weight.grad(), at::tensor({65536.0f, kInf, 65536.0f})));
  s.scaler.update();
  EXPECT_EQ(s.scaler.get_scale(), 32768);
}

TEST(LossScaler, ANormThatOverflowsCountsAsAnOverflow) {
  Loop<> s;
  s.set_gradient(3e38f);  // finite, but the norm of three is not
  EXPECT_FALSE(s.scaler.step_clipped(s.optimizer, 1.0).stepped);
  EXPECT_TRUE(same(s.weight, at::ones({3})));
}

// --- Handing the scale over ----------------------------------------------------------------------

TEST(LossScaler, HandsTheScaleToAnOptimizerThatTakesIt) {
  Loop<ScaledSgd> s;
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  EXPECT_EQ(s.optimizer.divisors, std::vector<double>{65536});
  EXPECT_TRUE(same(s.weight, at::zeros({3})));
  s.scaler.update();
  EXPECT_EQ(s.tracker(), 1);
  EXPECT_FALSE(s.step(kNan));
  EXPECT_EQ(s.optimizer.divisors.size(), 1);
  EXPECT_EQ(s.scaler.get_scale(), 32768);
}

TEST(LossScaler, HandsScaleAndClipOverTogether) {
  Loop<ScaledSgd> s({.init_scale = 8.0});
  s.weight.mutable_grad() = at::tensor({0.0f, 24.0f, 32.0f});  // unscaled norm 5
  const auto result = s.scaler.step_clipped(s.optimizer, 2.5);
  EXPECT_TRUE(result.stepped);
  EXPECT_EQ(result.norm.item<float>(), 5);
  ASSERT_EQ(s.optimizer.divisors.size(), 1);
  EXPECT_NEAR(s.optimizer.divisors[0], 16, 1e-5);
  EXPECT_TRUE(close(s.weight, at::tensor({1.0f, -0.5f, -1.0f})));
}

TEST(LossScaler, DoesNotHandOverWhatIsUnscaledAlready) {
  Loop<ScaledSgd> s;
  s.scaler.unscale_(s.optimizer);
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  EXPECT_TRUE(s.optimizer.divisors.empty());
  EXPECT_TRUE(same(s.weight, at::zeros({3})));
}

TEST(LossScaler, HandsHalfGradientsOver) {
  auto weight = parameter(at::ones({2}, at::kHalf));
  ScaledSgd optimizer({weight}, torch::optim::SGDOptions(1.0));
  LossScaler scaler({.init_scale = 1024.0});
  scaler.scale(weight.sum().to(at::kFloat)).backward();
  EXPECT_TRUE(scaler.step(optimizer));
  EXPECT_TRUE(same(weight, at::zeros({2}, at::kHalf)));
}

// --- Ranks ---------------------------------------------------------------------------------------

/// A rank of two; the other one always reports `theirs`.
Reducer with_other_rank(double theirs, int64_t& calls) {
  return Reducer(2, 0, [theirs, &calls](at::Tensor& t, ReduceOp op) {
    EXPECT_EQ(op, ReduceOp::max);
    t.clamp_min_(theirs);
    ++calls;
  });
}

TEST(LossScaler, SkipsWhenAnotherRankOverflows) {
  int64_t calls = 0;
  Loop<> s({.reducer = with_other_rank(1, calls)});
  EXPECT_FALSE(s.step(0));
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(s.scaler.get_scale(), 32768);
  EXPECT_FALSE(s.scaler.step_clipped(s.optimizer, 1.0).stepped);
  EXPECT_EQ(calls, 2);
}

TEST(LossScaler, ARankWithoutGradientsJoins) {
  int64_t calls = 0;
  Loop<> s({.reducer = with_other_rank(0, calls)});
  s.optimizer.zero_grad(/*set_to_none=*/true);
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  s.scaler.update();
  EXPECT_TRUE(s.scaler.step_clipped(s.optimizer, 1.0).stepped);
  EXPECT_EQ(calls, 2);
}

TEST(LossScaler, AgreesOnTheNormOfShards) {
  int64_t calls = 0;
  Loop<> s({.init_scale = 8.0, .reducer = with_other_rank(0, calls)});
  s.weight.mutable_grad() = at::tensor({24.0f, 0.0f, 0.0f});  // 3 unscaled; the other rank has 4
  const Reducer shards(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::sum) t.add_(32.0 * 32.0);
  });
  EXPECT_EQ(s.scaler.unscale_and_clip_(s.optimizer, 1.0, 2.0, shards).item<float>(), 5);
  EXPECT_TRUE(close(s.weight.grad(), at::tensor({0.6f, 0.0f, 0.0f})));
}

// --- By hand -------------------------------------------------------------------------------------

TEST(LossScaler, CountsWhatALoopFoundByItself) {
  Loop<> s({.growth_interval = 1});
  s.scaler.update_from(at::zeros({}));
  EXPECT_EQ(s.scaler.get_scale(), 131072);
  s.scaler.update_from(at::ones({1}, at::kDouble));
  EXPECT_EQ(s.scaler.get_scale(), 65536);
  s.set_gradient(kInf);
  s.scaler.unscale_(s.optimizer);
  s.scaler.update_from(at::zeros({}));  // the optimizer's overflow counts too
  EXPECT_EQ(s.scaler.get_scale(), 32768);
}

// --- Disabled ------------------------------------------------------------------------------------

TEST(LossScaler, DisabledItOnlySteps) {
  Loop<> s({.enabled = false});
  EXPECT_FALSE(s.scaler.is_enabled());
  EXPECT_TRUE(same(s.weight.grad(), at::ones({3})));
  s.scaler.unscale_(s.optimizer);
  s.scaler.unscale_(s.optimizer);
  EXPECT_TRUE(s.scaler.step(s.optimizer));
  EXPECT_TRUE(s.scaler.step(s.optimizer, [&] { return s.weight.sum(); }));
  s.scaler.update();
  s.scaler.update_from(at::ones({}));
  s.scaler.update(2.0);
  EXPECT_TRUE(same(s.weight, at::full({3}, -1.0f)));
  EXPECT_EQ(s.scaler.get_scale(), 1);
  EXPECT_TRUE(s.scaler.state_dict().empty());
  s.scaler.load_state_dict({});
}

TEST(LossScaler, DisabledItStillClips) {
  Loop<> s({.enabled = false});
  EXPECT_TRUE(s.scaler.step_clipped(s.optimizer, std::sqrt(3.0) / 2).stepped);
  EXPECT_TRUE(close(s.weight, at::full({3}, 0.5f)));
}

static_assert(Stateful<LossScaler>);

// --- State ---------------------------------------------------------------------------------------

TEST(LossScaler, StateSurvivesSaveAndLoad) {
  const LossScalerOptions options{.init_scale = 64.0, .growth_interval = 3, .hysteresis = 2};
  Loop<> whole(options);
  Loop<> before(options);
  for (const float gradient : {0.0f, kInf, 0.0f}) {
    whole.step(gradient);
    before.step(gradient);
  }
  // Into one that has a scale, and into one that has not.
  Loop<> with_scale(options);
  with_scale.scaler.load_state_dict(before.scaler.state_dict());
  LossScaler fresh(options);
  fresh.load_state_dict(before.scaler.state_dict());
  EXPECT_EQ(fresh.state_dict().size(), 6);
  Loop<> without_scale;
  without_scale.scaler = std::move(fresh);
  without_scale.scaler.scale(at::ones({}));
  for (const float gradient : {0.0f, kInf, 0.0f, 0.0f, 0.0f, kInf}) {
    whole.step(gradient);
    with_scale.step(gradient);
    without_scale.step(gradient);
    for (const auto& [key, value] : whole.scaler.state_dict()) {
      EXPECT_TRUE(same(value, with_scale.scaler.state_dict().at(key))) << key;
      EXPECT_TRUE(same(value, without_scale.scaler.state_dict().at(key))) << key;
    }
  }
}

TEST(LossScaler, LoadsAStateOfPythonsGradScaler) {
  LossScaler scaler({.hysteresis = 2, .max_scale = 1024.0 * 65536});
  scaler.load_state_dict({{"scale", state_value(512.0)},
                          {"growth_factor", state_value(4.0)},
                          {"backoff_factor", state_value(0.25)},
                          {"growth_interval", state_value(int64_t{7})},
                          {"_growth_tracker", state_value(int64_t{5})}});
  const auto state = scaler.state_dict();
  EXPECT_EQ(scaler.get_scale(), 512);
  EXPECT_EQ(scaler.get_growth_factor(), 4);
  EXPECT_EQ(scaler.get_backoff_factor(), 0.25);
  EXPECT_EQ(scaler.get_growth_interval(), 7);
  EXPECT_EQ(state_int(state, "_growth_tracker"), 5);
  EXPECT_EQ(state_int(state, "_hysteresis_tracker"), 2);
}

TEST(LossScaler, ALoadedScaleIsBroughtWithinTheLimits) {
  const auto state = LossScaler().state_dict();
  LossScaler scaler({.init_scale = 8.0, .max_scale = 16.0});
  scaler.load_state_dict(state);
  EXPECT_EQ(scaler.get_scale(), 16);
}

// --- Misuse --------------------------------------------------------------------------------------

const std::string kSecondTime =
    "() would divide this optimizer's gradients by the scale a second time: they were unscaled "
    "since the last update(). Call step() and update() first";
const std::string kNotScaled =
    "() was called before any scale(): no loss has been scaled yet. Backpropagate "
    "scaler.scale(loss), not the loss itself";
const std::string kStepped =
    "() was called for an optimizer that has stepped since the last update(); call update() once "
    "after all optimizers have stepped";
const std::string kNoClosure =
    "step() takes no closure while the scaler is enabled: a closure runs backward several times in "
    "one step, and every run would need its own scale, unscaling and overflow check. Train with an "
    "optimizer that needs none (SGD, AdamW), or in bfloat16, which needs no scaler";
const std::string kHalf =
    "float16 gradients cannot be unscaled: divided by the scale, the small ones vanish again. Keep "
    "the parameters in float32 and let Autocast cast inside the forward";

TEST(LossScaler, RefusesToUnscaleTwice) {
  Loop<> s;
  s.scaler.unscale_(s.optimizer);
  const auto grad = s.weight.grad().clone();
  EXPECT_EQ(message_of([&] { s.scaler.unscale_(s.optimizer); }), "unscale_" + kSecondTime);
  EXPECT_EQ(message_of([&] { s.scaler.unscale_and_clip_(s.optimizer, 1); }),
            "unscale_and_clip_" + kSecondTime);
  EXPECT_EQ(message_of([&] { s.scaler.step_clipped(s.optimizer, 1); }),
            "step_clipped" + kSecondTime);
  EXPECT_TRUE(same(s.weight.grad(), grad));
}

TEST(LossScaler, RefusesToUnscaleOrStepAfterTheStep) {
  Loop<> s;
  s.scaler.step(s.optimizer);
  EXPECT_EQ(message_of([&] { s.scaler.unscale_(s.optimizer); }),
            "unscale_() was called after step() for this optimizer; call update() first");
  EXPECT_EQ(message_of([&] { s.scaler.step(s.optimizer); }), "step" + kStepped);
  EXPECT_EQ(message_of([&] { s.scaler.step_clipped(s.optimizer, 1); }), "step_clipped" + kStepped);
  s.scaler.update();
  s.scaler.step(s.optimizer);
}

TEST(LossScaler, RefusesToStartBeforeScale) {
  LossScaler scaler;
  auto weight = parameter(at::ones({1}));
  auto optimizer = sgd({weight});
  EXPECT_EQ(message_of([&] { scaler.unscale_(optimizer); }), "unscale_" + kNotScaled);
  EXPECT_EQ(message_of([&] { scaler.unscale_and_clip_(optimizer, 1); }),
            "unscale_and_clip_" + kNotScaled);
  EXPECT_EQ(message_of([&] { scaler.step(optimizer); }), "step" + kNotScaled);
  EXPECT_EQ(message_of([&] { scaler.step_clipped(optimizer, 1); }), "step_clipped" + kNotScaled);
  EXPECT_EQ(message_of([&] { scaler.update(); }), "update" + kNotScaled);
  EXPECT_EQ(message_of([&] { scaler.update(2.0); }), "update" + kNotScaled);
  EXPECT_EQ(message_of([&] { scaler.update_from(at::zeros({})); }), "update_from" + kNotScaled);
}

TEST(LossScaler, RefusesToUpdateWithoutAStep) {
  Loop<> s;
  EXPECT_EQ(message_of([&] { s.scaler.update(); }),
            "update() found no optimizer that was unscaled or stepped since the last update(). "
            "Call step(optimizer) first, or set the scale by update(new_scale)");
}

TEST(LossScaler, RefusesToStepWithoutGradients) {
  const auto message =
      "no gradient in any of this optimizer's 1 parameters. Was backward() called, and does the "
      "optimizer hold this model's parameters?";
  Loop<> s;
  s.optimizer.zero_grad(/*set_to_none=*/true);
  EXPECT_EQ(message_of([&] { s.scaler.step(s.optimizer); }), message);
  Loop<ScaledSgd> handed;
  handed.optimizer.zero_grad(/*set_to_none=*/true);
  EXPECT_EQ(message_of([&] { handed.scaler.step(handed.optimizer); }), message);
  EXPECT_EQ(message_of([&] { handed.scaler.step_clipped(handed.optimizer, 1); }), message);
}

TEST(LossScaler, RefusesHalfGradients) {
  Loop<> s;
  auto weight = parameter(at::ones({2}, at::kHalf));
  weight.mutable_grad() = at::ones({2}, at::kHalf);
  s.set_gradient(8);
  auto optimizer = sgd({s.weight, weight});
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.unscale_(optimizer); }), kHalf);
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.unscale_and_clip_(optimizer, 1); }), kHalf);
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.step_clipped(optimizer, 1); }), kHalf);
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.step(optimizer); }), kHalf);
  EXPECT_TRUE(same(s.weight.grad(), at::full({3}, 8.0f)));
}

TEST(LossScaler, RefusesComplexGradients) {
  Loop<> s;
  auto weight = parameter(at::ones({2}, at::kComplexFloat));
  weight.mutable_grad() = at::ones({2}, at::kComplexFloat);
  auto optimizer = sgd({weight});
  EXPECT_EQ(message_of<c10::TypeError>([&] { s.scaler.unscale_(optimizer); }),
            "gradient 0 has dtype ComplexFloat; gradients must be float16, bfloat16, float32 or "
            "float64");
}

TEST(LossScaler, RefusesClosures) {
  Loop<> s;
  EXPECT_EQ(message_of<c10::NotImplementedError>(
                [&] { s.scaler.step(s.optimizer, [&] { return s.weight.sum(); }); }),
            kNoClosure);
  torch::optim::LBFGS lbfgs({s.weight});
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { s.scaler.step(lbfgs); }), kNoClosure);
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { s.scaler.step_clipped(lbfgs, 1); }),
            kNoClosure);
}

TEST(LossScaler, RefusesOutputsThatCannotBeScaled) {
  LossScaler scaler;
  EXPECT_EQ(message_of<c10::TypeError>([&] { scaler.scale(at::ones({2}, at::kLong)); }),
            "scale() needs a floating tensor, but got Long");
  EXPECT_EQ(message_of<c10::ValueError>([&] { scaler.scale(at::Tensor()); }),
            "scale() got an undefined tensor");
}

TEST(LossScaler, RefusesABadNewScale) {
  Loop<> s({.min_scale = 2.0});
  const auto message = [&](double value) {
    return message_of<c10::ValueError>([&] { s.scaler.update(value); });
  };
  EXPECT_EQ(message(-1), "new_scale must be a finite number above 0, but is -1");
  EXPECT_EQ(message(kNan), "new_scale must be a finite number above 0, but is nan");
  EXPECT_EQ(message(1), "new_scale must lie in [2, 3.40282e+38], but is 1");
  const auto text = "new_scale must be one floating number without gradient";
  for (const auto& bad : {at::ones({2}), at::ones({}, at::kInt), parameter(at::ones({}))}) {
    EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.update(bad); }), text);
  }
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.update_from(at::ones({2})); }),
            "found_inf must be one floating number");
  EXPECT_EQ(s.scaler.get_scale(), 65536);
}

TEST(LossScaler, RefusesABadClip) {
  Loop<> s;
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.unscale_and_clip_(s.optimizer, 0); }),
            "max_norm must be above 0, but is 0; use infinity to measure without clipping");
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.step_clipped(s.optimizer, 1, -1); }),
            "norm_type must be above 0 (2, 1, infinity, …), but is -1");
}

TEST(LossScaler, RefusesOptionsOutOfRange) {
  const auto message = [](const LossScalerOptions& options) {
    return message_of<c10::ValueError>([&] { LossScaler scaler(options); });
  };
  EXPECT_EQ(message({.init_scale = 0}), "init_scale must be a finite number above 0, but is 0");
  EXPECT_EQ(message({.init_scale = 1e39}),
            "init_scale must lie in [1.17549e-38, 3.40282e+38], but is 1e+39");
  EXPECT_EQ(message({.init_scale = 2, .min_scale = 4}),
            "init_scale must lie in [4, 3.40282e+38], but is 2");
  EXPECT_EQ(message({.growth_factor = 1}),
            "growth_factor must be a finite number above 1, but is 1");
  EXPECT_EQ(message({.backoff_factor = 1}),
            "backoff_factor must lie between 0 and 1, both excluded, but is 1");
  EXPECT_EQ(message({.growth_interval = 0}), "growth_interval must be 1 or more, but is 0");
  EXPECT_EQ(message({.growth_interval = int64_t{1} << 31}),
            "growth_interval must lie in [1, 2.14748e+09], but is 2.14748e+09");
  EXPECT_EQ(message({.hysteresis = 0}), "hysteresis must be 1 or more, but is 0");
  EXPECT_EQ(message({.min_scale = 0}),
            "min_scale must lie in [1.17549e-38, 3.40282e+38], but is 0");
  EXPECT_EQ(message({.max_scale = kInf}),
            "max_scale must lie in [1.17549e-38, 3.40282e+38], but is inf");
  LossScaler scaler;
  EXPECT_EQ(message_of<c10::ValueError>([&] { scaler.set_growth_factor(kNan); }),
            "growth_factor must be a finite number above 1, but is nan");
  EXPECT_EQ(message_of<c10::ValueError>([&] { scaler.set_backoff_factor(0); }),
            "backoff_factor must lie between 0 and 1, both excluded, but is 0");
  EXPECT_EQ(message_of<c10::ValueError>([&] { scaler.set_growth_interval(-2); }),
            "growth_interval must be 1 or more, but is -2");
}

TEST(LossScaler, RefusesABadStateAndChangesNothing) {
  Loop<> s;
  const auto before = s.scaler.state_dict();
  const auto message = [&](const std::string& key, const at::Tensor& value) {
    auto state = before;
    state["scale"] = state_value(2.0);
    state[key] = value;
    if (!value.defined()) state.erase(key);
    return message_of<c10::ValueError>([&] { s.scaler.load_state_dict(state); });
  };
  EXPECT_EQ(message_of<c10::ValueError>([&] { s.scaler.load_state_dict({}); }),
            "load_state_dict() got an empty state; it was perhaps saved from a LossScaler with "
            "enabled = false");
  EXPECT_EQ(message("growth_factor", {}),
            "the saved state has no 'growth_factor'; it has: _growth_tracker, _hysteresis_tracker, "
            "backoff_factor, growth_interval, scale");
  EXPECT_EQ(message("scale", state_value(0.0)), "scale must be a finite number above 0, but is 0");
  EXPECT_EQ(message("backoff_factor", state_value(2.0)),
            "backoff_factor must lie between 0 and 1, both excluded, but is 2");
  EXPECT_EQ(message("_growth_tracker", state_value(int64_t{-1})),
            "_growth_tracker must be a finite number, 0 or above, but is -1");
  for (const auto& [key, value] : before) {
    EXPECT_TRUE(same(value, s.scaler.state_dict().at(key))) << key;
  }
}

}  // namespace
}  // namespace torchlore
