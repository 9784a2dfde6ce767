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
  EXPECT_EQ(refusal([] { cosine(5)(-1); }),
            "a schedule begins at step 0, but was asked for step -1");
}

}  // namespace
}  // namespace torchlore
