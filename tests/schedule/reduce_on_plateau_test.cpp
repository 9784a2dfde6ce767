#include "torchlore/schedule/reduce_on_plateau.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/message.hpp"
#include "test_paths.hpp"

namespace torchlore {
namespace {

using Options = ReduceOnPlateauOptions;
using Mode = Options::Mode;
using ThresholdMode = Options::ThresholdMode;
using torch::optim::OptimizerParamGroup;
using torch::optim::SGDOptions;

/// Two groups with the base rates of tests/oracles/plateau.py.
struct Job {
  Job() {
    for (const double rate : {0.1, 0.02}) {
      optimizer.add_param_group(
          {{at::zeros({1}).requires_grad_()}, std::make_unique<SGDOptions>(rate)});
    }
  }
  torch::optim::SGD optimizer{std::vector<OptimizerParamGroup>{}, SGDOptions(1.0)};
};

double metric(int64_t t) {
  return 2.0 / static_cast<double>(1 + t / 25) + static_cast<double>((t * 37) % 101) / 1024;
}

struct Case {
  std::string name;
  Options options;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  return {
      {"defaults", {}},
      {"patient", {.factor = 0.5, .patience = 40}},
      {"impatient", {.factor = 0.9, .patience = 0, .cooldown = 7, .min_lr = {0.001}}},
      {"cooldown", {.factor = 0.7, .patience = 5, .threshold = 0.05, .cooldown = 30}},
      {"max_rel", {.mode = Mode::max, .factor = 0.6, .patience = 12}},
      {"max_abs",
       {.mode = Mode::max,
        .factor = 0.6,
        .patience = 12,
        .threshold = 0.02,
        .threshold_mode = ThresholdMode::abs}},
      {"min_abs",
       {.factor = 0.8,
        .patience = 20,
        .threshold = 0.01,
        .threshold_mode = ThresholdMode::abs,
        .cooldown = 3}},
      {"min_lr_per_group", {.factor = 0.5, .patience = 4, .min_lr = {0.003, 0.004}}},
      {"eps", {.factor = 0.5, .patience = 2, .eps = 1e-3}},
  };
}

/// The calls after which the rates changed, and to what.
using Trace = std::map<int64_t, std::vector<double>>;

std::map<std::string, Trace> golden() {
  std::ifstream file(std::string(TORCHLORE_TEST_DATA) + "/plateau.txt");
  std::map<std::string, Trace> traces;
  std::string name;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    if (line.rfind("case ", 0) == 0) {
      traces[name = line.substr(5)];
      continue;
    }
    int64_t call = 0;
    double first = 0, second = 0;
    words >> call >> first >> second;
    traces[name][call] = {first, second};
  }
  return traces;
}

class PyTorch : public ::testing::TestWithParam<Case> {};

TEST_P(PyTorch, LowersTheSameRatesAtTheSameCalls) {
  const auto& [name, options] = GetParam();
  const auto expected = golden().at(name);
  ASSERT_FALSE(expected.empty());
  Job job;
  LearningRate rate(job.optimizer);
  ReduceOnPlateau plateau(rate, options);
  Trace trace;
  for (int64_t t = 0; t < 1000; ++t) {
    const double sign = options.mode == Mode::max ? -1 : 1;
    if (plateau.step(sign * metric(t))) trace[t] = rate.rates();
  }
  EXPECT_EQ(trace, expected);
}

INSTANTIATE_TEST_SUITE_P(Plateau, PyTorch, ::testing::ValuesIn(cases()),
                         [](const auto& row) { return row.param.name; });

TEST(ReduceOnPlateau, LeavesTheScheduleRunning) {
  Job job;
  const auto s = schedule::cosine(10);
  LearningRate rate(job.optimizer, s);
  ReduceOnPlateau plateau(rate, {.factor = 0.5, .patience = 0});
  EXPECT_FALSE(plateau.step(1.0));
  rate.step();
  EXPECT_TRUE(plateau.step(1.0));
  EXPECT_EQ(rate.rates(), (std::vector<double>{0.05 * s(1), 0.01 * s(1)}));
  rate.step();
  EXPECT_EQ(rate.rates(), (std::vector<double>{0.05 * s(2), 0.01 * s(2)}));
}

TEST(ReduceOnPlateau, NaNIsNoImprovement) {
  Job job;
  LearningRate rate(job.optimizer);
  ReduceOnPlateau plateau(rate, {.patience = 1});
  EXPECT_EQ(plateau.best(), std::numeric_limits<double>::infinity());
  EXPECT_FALSE(plateau.step(std::nan("")));
  EXPECT_EQ(plateau.bad_steps(), 1);
  EXPECT_TRUE(plateau.step(std::nan("")));
  EXPECT_FALSE(plateau.step(3.0));
  EXPECT_EQ(plateau.best(), 3.0);
}

TEST(ReduceOnPlateau, GoesOnWhereItStood) {
  const Options options{.factor = 0.7, .patience = 5, .threshold = 0.05, .cooldown = 30};
  for (const int64_t stop : {3, 100, 333}) {
    Job whole, stopped;
    LearningRate rate(whole.optimizer), before(stopped.optimizer);
    ReduceOnPlateau plateau(rate, options), saved(before, options);
    for (int64_t t = 0; t < stop; ++t) {
      plateau.step(metric(t));
      saved.step(metric(t));
    }
    Job resumed;
    LearningRate after(resumed.optimizer);
    ReduceOnPlateau loaded(after, options);
    after.load_state_dict(before.state_dict());
    loaded.load_state_dict(saved.state_dict());
    for (int64_t t = stop; t < 600; ++t) {
      ASSERT_EQ(loaded.step(metric(t)), plateau.step(metric(t))) << t;
    }
    EXPECT_EQ(after.rates(), rate.rates());
  }
}

TEST(ReduceOnPlateau, RanksDecideByTheMean) {
  // Two ranks; the other one always measures 5.
  const Reducer ranks(2, 0, [](at::Tensor& t, ReduceOp op) {
    ASSERT_EQ(op, ReduceOp::sum);
    t.add_(5);
  });
  Job job;
  LearningRate rate(job.optimizer);
  ReduceOnPlateau plateau(rate, {.patience = 0, .reducer = ranks});
  plateau.step(3);
  EXPECT_EQ(plateau.best(), 4);
}

TEST(ReduceOnPlateau, NamesMisuse) {
  Job job;
  LearningRate rate(job.optimizer);
  const auto refusal = [&](const Options& options) {
    return testing::message_of<c10::ValueError>([&] { ReduceOnPlateau(rate, options).step(1); });
  };
  EXPECT_EQ(refusal({.factor = 1}), "ReduceOnPlateau: factor must lie between 0 and 1, but is 1");
  EXPECT_EQ(refusal({.patience = -1}), "ReduceOnPlateau: patience must be 0 or more, but is -1");
  EXPECT_EQ(refusal({.cooldown = -2}), "ReduceOnPlateau: cooldown must be 0 or more, but is -2");
  EXPECT_EQ(refusal({.threshold = -0.5}),
            "ReduceOnPlateau: threshold must be a finite number, 0 or above, but is -0.5");
  EXPECT_EQ(refusal({.min_lr = {}}), "ReduceOnPlateau: min_lr is empty; give 0 for no lower bound");
  EXPECT_EQ(
      refusal({.min_lr = {1, 2, 3}}),
      "ReduceOnPlateau has 3 min_lr for 2 parameter groups; give one for all, or one per group");
  EXPECT_EQ(refusal({.eps = -1}),
            "ReduceOnPlateau: eps must be a finite number, 0 or above, but is -1");
}

}  // namespace
}  // namespace torchlore
