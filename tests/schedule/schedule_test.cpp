#include "torchlore/schedule/schedule.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numbers>
#include <set>

#include "golden.hpp"
#include "support/message.hpp"

namespace torchlore {
namespace {

using schedule::WarmupShape;

constexpr double kRates[] = {0.1, 0.02};  // as tests/oracles/schedules.py

struct Case {
  std::string name;
  /// The schedule of a group with that base rate: PyTorch's minima are rates, ours are factors.
  std::function<Schedule(double base)> make;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  using namespace schedule;
  const auto same = [](const Schedule& s) { return [=](double) { return s; }; };
  return {
      {"linear_warmup", same(warmup(200, {.start_factor = 0.01}))},
      {"constant_warmup",
       same(warmup(300, {.start_factor = 0.25, .shape = WarmupShape::constant}))},
      {"cosine", same(cosine(1000))},
      {"cosine_short", same(cosine(400))},
      {"cosine_min", [](double base) { return cosine(1000, 0.005 / base); }},
      {"warmup_cosine", same(warmup(120, {.start_factor = 0.05}).then(cosine(880)))},
      {"cosine_restarts", same(cosine_restarts(150))},
      {"cosine_restarts_longer",
       [](double base) {
         return cosine_restarts(60, {.multiplier = 3, .min_factor = 0.002 / base});
       }},
      {"linear", same(linear(800, {.end_factor = 0.1}))},
      {"linear_to_zero", same(linear(700, {.start_factor = 0.9}))},
      {"polynomial", same(polynomial(900, {.power = 2.5}))},
      {"polynomial_line", same(polynomial(1000))},
      {"exponential", same(exponential(0.995))},
      {"exponential_growth", same(exponential(1.004))},
      {"step", same(step(90, 0.5))},
      {"multi_step", same(multi_step({10, 300, 301, 800}, 0.2))},
      {"constant_exponential", same(constant(250, 0.1).then(exponential(0.99)))},
      {"step_warmup_restarts",
       same(warmup(50, {.start_factor = 0.2}).then(step(40, 0.7).until(250)).then(cosine(700)))},
      {"product", same(constant(200, 0.1).then(constant()) * exponential(0.998))},
      {"product_of_three", same(warmup(100, {.start_factor = 0.05}) * step(250, 0.3) *
                                polynomial(2000, {.power = 0.5}))},
      {"one_cycle", same(one_cycle(1000))},
      {"one_cycle_adamw", same(one_cycle(1000))},
      {"one_cycle_linear", same(one_cycle(1000, {.pct_start = 0.4,
                                                 .anneal_strategy = AnnealStrategy::linear,
                                                 .base_momentum = 0.6,
                                                 .div_factor = 10}))},
      {"one_cycle_three", same(one_cycle(1000, {.final_div_factor = 100, .three_phase = true}))},
      {"one_cycle_three_linear", same(one_cycle(1000, {.pct_start = 0.25,
                                                       .anneal_strategy = AnnealStrategy::linear,
                                                       .max_momentum = 0.9,
                                                       .three_phase = true}))},
      {"one_cycle_down_only", same(one_cycle(1000, {.pct_start = 0}))},
      {"one_cycle_up_only", same(one_cycle(321, {.pct_start = 1}))},
      {"one_cycle_rate_only", same(one_cycle(1000, {.cycle_momentum = false}))},
      {"lambda", same(lambda([](int64_t t) { return 1 / (1 + 0.01 * static_cast<double>(t)); }))},
  };
}

class PyTorch : public ::testing::TestWithParam<Case> {};

TEST_P(PyTorch, GivesTheSameRates) {
  static const auto golden = testing::golden_schedules();
  const auto found = golden.find(GetParam().name);
  ASSERT_NE(found, golden.end());
  ASSERT_GT(found->second.size(), 10U);
  for (size_t group = 0; group < 2; ++group) {
    const auto s = GetParam().make(kRates[group]);
    for (const auto& [step, values] : found->second) {
      EXPECT_TRUE(testing::near_golden(kRates[group] * s(step), values[group], kRates[group]))
          << "group " << group << " step " << step;
      ASSERT_EQ(s.has_momentum(), values.size() == 3);
      if (s.has_momentum()) {
        EXPECT_NEAR(*s.momentum(step), values[2], 1e-12) << "step " << step;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schedules, PyTorch, ::testing::ValuesIn(cases()),
                         [](const auto& row) { return row.param.name; });

TEST(PyTorchData, IsAllUsed) {
  std::set<std::string> used;
  for (const auto& c : cases()) used.insert(c.name);
  for (const auto& [name, steps] : testing::golden_schedules())
    EXPECT_TRUE(used.count(name)) << name;
}

TEST(Schedule, ReadsAsInTheExample) {
  const auto s = schedule::warmup(200).then(schedule::cosine(10'000));
  EXPECT_EQ(s.steps(), 10'200);
  EXPECT_EQ(s.warmup_steps(), 200);
  EXPECT_DOUBLE_EQ(s(0), 1.0 / 201);
  EXPECT_DOUBLE_EQ(s(99), 100.0 / 201);
  EXPECT_EQ(s(200), 1);
  EXPECT_DOUBLE_EQ(s(200 + 5'000), 0.5);
  EXPECT_EQ(s(10'200), 0);
  EXPECT_EQ(s(1'000'000'000), 0);
}

TEST(Schedule, WarmsUpInItsShapes) {
  const auto exponential =
      schedule::warmup(4, {.start_factor = 1.0 / 16, .shape = WarmupShape::exponential});
  const auto constant = schedule::warmup(4, {.start_factor = 0.25, .shape = WarmupShape::constant});
  const auto from_zero = schedule::warmup(4, {.start_factor = 0.0});
  for (int64_t t = 0; t < 8; ++t) {
    const double left = static_cast<double>(std::max<int64_t>(4 - t, 0));
    EXPECT_DOUBLE_EQ(exponential(t), std::pow(2.0, -left));
    EXPECT_EQ(constant(t), t < 4 ? 0.25 : 1);
    EXPECT_EQ(from_zero(t), 1 - left / 4);
  }
}

TEST(Schedule, CyclesDoNotEnd) {
  const auto s = schedule::cosine_restarts(2, {.multiplier = 3});
  for (const int64_t start : {0, 2, 8, 26, 80}) {
    EXPECT_EQ(s(start), 1) << start;
    EXPECT_LT(s(start + 1), 1) << start;
  }
  EXPECT_GE(s(Schedule::kEndless), 0);
  EXPECT_LE(s(Schedule::kEndless), 1);
}

TEST(Schedule, DecaysInEachShape) {
  using schedule::DecayShape;
  const double m = 0.1;
  // The published formulas at u = 1/4; see DecayShape.
  const std::vector<std::pair<DecayShape, double>> expected{
      {DecayShape::linear, 0.1 + 0.9 * 0.75},
      {DecayShape::cosine, 0.1 + 0.9 * (0.5 + std::numbers::sqrt2 / 4)},
      {DecayShape::exponential, 0.56234132519034908},  // the fourth root of 0.1
      {DecayShape::one_minus_sqrt, 0.1 + 0.9 * 0.5},
      {DecayShape::one_minus_square, 0.1 + 0.9 * 0.9375},
      {DecayShape::inverse, 1 / (2.5 + 0.75)}};
  for (const auto& [shape, quarter] : expected) {
    const auto s = schedule::decay(400, {.shape = shape, .min_factor = m});
    EXPECT_EQ(s(0), 1) << static_cast<int>(shape);
    EXPECT_NEAR(s(100), quarter, 1e-15) << static_cast<int>(shape);
    EXPECT_NEAR(s(400), m, 1e-15) << static_cast<int>(shape);
    EXPECT_EQ(s(500), s(400)) << static_cast<int>(shape);
    for (int64_t t = 0; t < 400; ++t) ASSERT_GT(s(t), s(t + 1));
  }
}

TEST(Schedule, WarmsUpStaysAndDecays) {
  const auto s = schedule::wsd(100, {.warmup = 9, .decay = 20, .min_factor = 0.2});
  EXPECT_EQ(s.steps(), 100);
  EXPECT_EQ(s.warmup_steps(), 9);
  EXPECT_DOUBLE_EQ(s(0), 0.1);
  EXPECT_DOUBLE_EQ(s(8), 0.9);
  for (int64_t t = 9; t <= 80; ++t) EXPECT_EQ(s(t), 1);
  EXPECT_DOUBLE_EQ(s(85), 0.2 + 0.8 * 0.5);
  EXPECT_DOUBLE_EQ(s(100), 0.2);
  EXPECT_DOUBLE_EQ(schedule::wsd(8, {.decay = 8})(2), 0.5);      // nothing but the decay
  EXPECT_EQ(schedule::wsd(8, {.warmup = 3, .decay = 5})(3), 1);  // nothing in between
  EXPECT_EQ(schedule::wsd(8, {})(3), 1);
}

TEST(Schedule, FollowsTheTransformers) {
  // d_model^-0.5 · min(t^-0.5, t · warmup^-1.5) with t from 1, over its peak.
  const int64_t warm = 40;
  const auto s = schedule::warmup(warm - 1).then(schedule::inverse_sqrt(warm));
  for (int64_t t = 0; t < 1000; ++t) {
    const double now = static_cast<double>(t + 1), w = static_cast<double>(warm);
    const double expected = std::min(std::sqrt(w / now), now / w);
    EXPECT_NEAR(s(t), expected, 1e-15) << t;
  }
}

TEST(Schedule, OneCycleStaysAtItsEnd) {
  const auto s = schedule::one_cycle(100);
  EXPECT_EQ(s.steps(), 100);
  EXPECT_EQ(s.warmup_steps(), 29);
  EXPECT_EQ(s(29), 1);
  EXPECT_EQ(s(100), s(99));
  EXPECT_EQ(s(1000), s(99));
  EXPECT_EQ(*s.momentum(1000), 0.95);
}

TEST(Schedule, MomentumGoesWithThePartThatHasIt) {
  const auto cycle = schedule::one_cycle(10);
  const auto first = cycle.then(schedule::constant(5));
  EXPECT_EQ(*first.momentum(2), *cycle.momentum(2));
  EXPECT_EQ(*first.momentum(14), 0.95);
  const auto second = schedule::constant(5).then(cycle);
  EXPECT_EQ(*second.momentum(2), 0.95);
  EXPECT_EQ(*second.momentum(5 + 2), *cycle.momentum(2));
  EXPECT_EQ(*cycle.then(cycle).momentum(12), *cycle.momentum(2));
  EXPECT_EQ(*(cycle * schedule::step(3)).momentum(4), *cycle.momentum(4));
  EXPECT_EQ(*cycle.until(5).momentum(9), *cycle.momentum(5));
  EXPECT_FALSE(schedule::constant(5).then(schedule::cosine(5)).has_momentum());
}

TEST(Schedule, EachPartOfThenBeginsAnew) {
  const auto s =
      schedule::constant(3, 0.5).then(schedule::cosine(4)).then(schedule::constant(2, 0.1));
  EXPECT_EQ(s.steps(), 9);
  const double h = 0.5 + std::numbers::sqrt2 / 4;  // (1 + cos 45°) / 2
  const std::vector<double> expected{0.5, 0.5, 0.5, 1, h, 0.5, 1 - h, 0.1, 0.1, 0.1, 0.1};
  for (size_t t = 0; t < expected.size(); ++t) {
    EXPECT_NEAR(s(static_cast<int64_t>(t)), expected[t], 1e-15) << t;
  }
}

TEST(Schedule, MultipliesFactors) {
  const auto s = schedule::warmup(10) * schedule::cosine(20, 0.2);
  for (int64_t t = 0; t < 40; ++t) {
    EXPECT_EQ(s(t), schedule::warmup(10)(t) * schedule::cosine(20, 0.2)(t));
  }
  EXPECT_EQ(s.steps(), 20);
  EXPECT_EQ(s.warmup_steps(), 10);
}

TEST(Schedule, UntilGivesAnotherLength) {
  const auto cut = schedule::cosine(100).until(50);
  EXPECT_EQ(cut.steps(), 50);
  EXPECT_DOUBLE_EQ(cut(50), 0.5);
  EXPECT_DOUBLE_EQ(cut(1000), 0.5);
  const auto longer = schedule::warmup(2).until(5).then(schedule::constant(1, 0.5));
  EXPECT_EQ(longer(4), 1);
  EXPECT_EQ(longer(5), 0.5);
}

TEST(Schedule, OneThatNeverEndsHasNoLength) {
  EXPECT_EQ(schedule::constant().steps(), Schedule::kEndless);
  EXPECT_EQ(schedule::warmup(7).then(schedule::constant()).steps(), Schedule::kEndless);
  EXPECT_EQ(schedule::constant()(Schedule::kEndless), 1);
}

TEST(Schedule, AFunctionIsNotAskedBeyondItsLength) {
  int64_t largest = 0;
  const auto s = schedule::lambda(
      [&](int64_t t) {
        largest = std::max(largest, t);
        return 1.0;
      },
      5);
  for (int64_t t = 0; t < 20; ++t) s(t);
  EXPECT_EQ(largest, 5);
}

std::string refusal(const std::function<void()>& f) {
  return testing::message_of<c10::ValueError>(f);
}

TEST(Schedule, NamesMisuse) {
  using namespace schedule;
  EXPECT_EQ(refusal([] { cosine(100 - 200); }),
            "schedule::cosine: steps must be 1 or more, but is -100; where it is what a warm-up "
            "leaves of a run, the run is too short for that warm-up");
  EXPECT_EQ(
      refusal([] { warmup(0); }),
      "schedule::warmup: steps must be 1 or more, but is 0; where it is what a warm-up leaves "
      "of a run, the run is too short for that warm-up");
  EXPECT_EQ(
      refusal([] { warmup(5, {.start_factor = 1.5}); }),
      "schedule::warmup: start_factor must be a factor of the base rate in [0, 1], but is 1.5");
  EXPECT_EQ(
      refusal([] { warmup(5, {.start_factor = 0.0, .shape = WarmupShape::exponential}); }),
      "schedule::warmup: an exponential one cannot start at factor 0, since it rises by equal "
      "ratios; give a start_factor above 0");
  EXPECT_EQ(refusal([] { cosine(5, std::nan("")); }),
            "schedule::cosine: min_factor must be a factor of the base rate in [0, 1], but is nan");
  EXPECT_EQ(refusal([] { constant(5, -0.5); }),
            "schedule::constant: factor must be a factor of the base rate in [0, 1], but is -0.5");
  EXPECT_EQ(refusal([] { lambda(nullptr); }),
            "a schedule needs a function for its factor, but got none");
  EXPECT_EQ(refusal([] { constant().then(cosine(5)); }),
            "this schedule never ends, so nothing can follow it; give it a length by until(steps) "
            "before then(…)");
  EXPECT_EQ(refusal([] { warmup(200).then(cosine(100)).until(150); }),
            "until(150) would end the schedule inside its warm-up of 200 steps; make it longer, or "
            "the warm-up shorter");
  EXPECT_EQ(refusal([] { cosine(5).until(0); }),
            "until(steps) of a schedule must be 1 or more, but is 0");
  EXPECT_EQ(
      refusal([] { wsd(100, {.warmup = 80, .decay = 30}); }),
      "schedule::wsd: 100 steps are fewer than those of warmup (80) and decay (30); give more "
      "steps, or make the two shorter");
  EXPECT_EQ(refusal([] { wsd(100, {.warmup = -1}); }),
            "schedule::wsd: warmup and decay must be 0 or more steps, but are -1 and 0");
  EXPECT_EQ(
      refusal([] { decay(9, {.shape = DecayShape::inverse}); }),
      "schedule::decay: an inverse decay never reaches the min_factor 0; give one above 0, as "
      "in 0.01");
  EXPECT_EQ(refusal([] {
              multi_step({30, 20});
            }),
            "schedule::multi_step: milestones must be 1 or more and increase, but 20 follows 30");
  EXPECT_EQ(refusal([] {
              multi_step({0, 20});
            }),
            "schedule::multi_step: milestones must be 1 or more and increase, but 0 follows 0");
  EXPECT_EQ(refusal([] { multi_step({}); }),
            "schedule::multi_step needs at least one milestone; use constant() for none");
  EXPECT_EQ(refusal([] { step(0); }), "schedule::step: every must be 1 or more, but is 0");
  EXPECT_EQ(refusal([] { exponential(-0.5); }),
            "schedule::exponential: gamma must be a finite number above 0, but is -0.5");
  EXPECT_EQ(refusal([] { polynomial(9, {.power = 0}); }),
            "schedule::polynomial: power must be a finite number above 0, but is 0");
  EXPECT_EQ(refusal([] { cosine_restarts(9, {.multiplier = 0}); }),
            "schedule::cosine_restarts: multiplier must be 1 or more, but is 0");
  EXPECT_EQ(refusal([] { linear(9, {.end_factor = 2}); }),
            "schedule::linear: end_factor must be a factor of the base rate in [0, 1], but is 2");
  EXPECT_EQ(refusal([] { one_cycle(3); }),
            "schedule::one_cycle: the rate rises in pct_start (0.3) of 3 steps, which is 0.9; it "
            "takes more than 1: make the cycle longer, or pct_start larger");
  EXPECT_EQ(refusal([] { one_cycle(100, {.pct_start = 0.6, .three_phase = true}); }),
            "schedule::one_cycle: pct_start must lie in [0, 0.5], but is 0.6");
  EXPECT_EQ(refusal([] { one_cycle(100, {.base_momentum = 0.99}); }),
            "schedule::one_cycle: 0 <= base_momentum <= max_momentum < 1 must hold, but they are "
            "0.99 and 0.95");
  EXPECT_EQ(
      refusal([] { one_cycle(100).then(cosine(5)) * one_cycle(9); }),
      "both schedules of a product write momentum; make one of them without, for one_cycle by "
      ".cycle_momentum = false");
  EXPECT_EQ(refusal([] { cosine(5)(-1); }),
            "a schedule begins at step 0, but was asked for step -1");
}

}  // namespace
}  // namespace torchlore
