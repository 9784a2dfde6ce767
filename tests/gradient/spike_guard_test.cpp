#include "torchlore/gradient/spike_guard.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/core/module_state.hpp"
#include "torchlore/core/optimizer_state.hpp"
#include "torchlore/core/parameters.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"

namespace torchlore {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNan = std::nan("");

/// A model with buffers, its optimizer, and steps that change everything.
struct Training {
  using Make = std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor>)>;

  explicit Training(const Make& make = [](auto p) {
    return std::make_unique<torch::optim::AdamW>(p, torch::optim::AdamWOptions(0.01));
  }) {
    at::set_num_threads(1);  // the net is tiny
    at::manual_seed(3);
    model = torch::nn::Sequential(torch::nn::Linear(4, 8), torch::nn::BatchNorm1d(8),
                                  torch::nn::Linear(8, 1));
    optimizer = make(model->parameters());
  }

  at::Tensor loss(const at::Tensor& x) { return model->forward(x).square().mean(); }
  void step() {
    optimizer->zero_grad();
    loss(at::randn({16, 4})).backward();
    optimizer->step();
  }
  /// Everything, copied.
  StateDict state() const {
    StateDict all;
    for (const auto& [key, value] : module_state_dict(*model)) all["m/" + key] = value.clone();
    for (const auto& [key, value] : optimizer_state_dict(*optimizer, *model)) {
      all["o/" + key] = value.clone();
    }
    return all;
  }

  torch::nn::Sequential model{nullptr};
  std::unique_ptr<torch::optim::Optimizer> optimizer;
};

::testing::AssertionResult same_state(const StateDict& a, const StateDict& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << "other keys";
  for (const auto& [key, value] : a) {
    const auto found = b.find(key);
    if (found == b.end()) return ::testing::AssertionFailure() << "no " << key;
    if (!at::equal(value, found->second)) return ::testing::AssertionFailure() << key;
  }
  return ::testing::AssertionSuccess();
}

/// One parameter that is never stepped: for the decisions alone.
struct Decisions {
  explicit Decisions(SpikeGuardOptions options = {})
      : guard(optimizer,
              (
                  options.on_spike = [this](const auto& v) { told.push_back(v); }, options)) {
    at::set_num_threads(1);
  }
  SpikeVerdict see(double loss, double norm = 1.0) {
    return guard.observe(at::scalar_tensor(loss, at::kDouble),
                         at::scalar_tensor(norm, at::kDouble));
  }
  /// Enough good losses around 1 for the z-score.
  void warm_up(int64_t count = 64) {
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(see(1.0 + 0.02 * static_cast<double>(i % 7 - 3)).action, SpikeAction::none);
    }
  }
  at::Tensor parameter = at::ones({3}).requires_grad_();
  torch::optim::SGD optimizer{std::vector<at::Tensor>{parameter}, torch::optim::SGDOptions(0.1)};
  std::vector<SpikeVerdict> told;
  SpikeGuard guard;
};

TEST(SpikeGuard, AJumpByThreeOrdersOfMagnitudeIsASpikeFromTheSecondLossOn) {
  Decisions d;
  EXPECT_EQ(d.see(0.5).reason, SpikeReason::none);
  EXPECT_EQ(d.see(499.0).reason, SpikeReason::none);  // the level is now between the two
  Decisions e;
  e.see(0.5);
  EXPECT_EQ(e.see(501.0).reason, SpikeReason::jump);
  Decisions off({.jump = kInf});
  off.see(0.5);
  EXPECT_EQ(off.see(1e30).reason, SpikeReason::none);
}

TEST(SpikeGuard, AJumpStandsOutFromLossesThatSpread) {
  Decisions d;
  for (int i = 0; i < 64; ++i) d.see(std::pow(10.0, -6 + i % 7));  // 1e-6 to 1, level 1e-3
  EXPECT_EQ(d.see(5.0).reason, SpikeReason::none);
  EXPECT_EQ(d.see(900.0).reason, SpikeReason::none);
  Decisions e;
  for (int i = 0; i < 64; ++i) e.see(std::pow(10.0, -6 + i % 7));
  EXPECT_EQ(e.see(1'100.0).reason, SpikeReason::jump);
  Decisions f;
  f.warm_up();
  f.see(1.5);
  EXPECT_EQ(f.see(1'200.0).reason, SpikeReason::jump);  // not 1,000 times the largest, but far out
}

TEST(SpikeGuard, ALossThatStandsOutIsASpikeAfterTheWarmUp) {
  Decisions d;
  d.warm_up(31);
  EXPECT_EQ(d.see(3.0).reason, SpikeReason::none);
  Decisions e;
  e.warm_up(32);
  // Spread: 0.1, the least; 6 of them above the level is a factor of 1.82.
  EXPECT_EQ(e.see(1.75).reason, SpikeReason::none);
  Decisions f;
  f.warm_up(32);
  const auto verdict = f.see(1.9);
  EXPECT_EQ(verdict.reason, SpikeReason::z_score);
  EXPECT_EQ(verdict.step, 32);
  EXPECT_EQ(verdict.loss, 1.9);
  EXPECT_NEAR(verdict.level, 1.0, 0.02);
  EXPECT_NEAR(verdict.z_score, std::log(1.9 / verdict.level) / 0.1, 1e-9);
}

TEST(SpikeGuard, ALossThatWasThereBeforeIsNoSpike) {
  Decisions d;
  d.see(3.0);
  d.warm_up(200);
  const auto verdict = d.see(2.5);
  EXPECT_GT(verdict.z_score, 6);
  EXPECT_EQ(verdict.reason, SpikeReason::none);
  EXPECT_EQ(d.see(3.1).reason, SpikeReason::z_score);
}

TEST(SpikeGuard, WhatIsNotFiniteIsASpikeAtOnce) {
  for (const double bad : {kInf, -kInf, kNan}) {
    Decisions d;
    EXPECT_EQ(d.see(bad).reason, SpikeReason::non_finite);
    EXPECT_EQ(d.see(1.0, bad).reason, SpikeReason::non_finite);
    EXPECT_EQ(d.see(1.0).reason, SpikeReason::none);
    EXPECT_EQ(d.guard.spikes(), 2);
  }
}

TEST(SpikeGuard, EscalatesAndAnyGoodLossEndsTheRow) {
  Decisions d({.clips = 2, .skips = 3});
  d.warm_up();
  std::vector<SpikeAction> actions;
  for (int i = 0; i < 7; ++i) actions.push_back(d.see(5.0).action);
  using enum SpikeAction;
  // After the roll-back the parameters are known to be good: it is the data.
  EXPECT_EQ(actions, (std::vector<SpikeAction>{clip, clip, skip, skip, skip, roll_back, skip}));
  EXPECT_EQ(d.guard.roll_backs(), 1);
  EXPECT_EQ(d.see(1.0).action, none);
  EXPECT_EQ(d.see(5.0).action, clip);
  EXPECT_EQ(d.told.size(), 8u);
  EXPECT_EQ(d.guard.last_spike().action, clip);
}

TEST(SpikeGuard, NeverClipsWhatCannotBeClipped) {
  using enum SpikeAction;
  for (const double bad : {1e6, kInf, kNan}) {
    Decisions d;
    d.warm_up();
    EXPECT_EQ(d.see(bad).action, skip) << bad;
    EXPECT_EQ(d.see(bad).action, roll_back) << bad;
    EXPECT_EQ(d.see(bad).action, skip) << bad;
  }
  Decisions without_norm;
  for (int i = 0; i < 40; ++i) without_norm.guard.observe(at::scalar_tensor(1.0));
  EXPECT_EQ(without_norm.guard.observe(at::scalar_tensor(5.0)).action, skip);
}

TEST(SpikeGuard, ClipsToAShareOfTheMedianNorm) {
  Decisions d({.clip_factor = 0.25});
  for (int i = 0; i < 41; ++i) d.see(1.0, 1.0 + i);  // 1 to 41
  const auto verdict = d.see(9.0, 1'000.0);
  EXPECT_EQ(verdict.action, SpikeAction::clip);
  EXPECT_EQ(verdict.max_norm, 0.25 * 21);
  EXPECT_EQ(d.see(1.0).max_norm, kInf);
}

TEST(SpikeGuard, TakesALevelThatStaysForNormal) {
  Decisions d({.patience = 5});
  d.warm_up();
  for (int i = 0; i < 5; ++i) EXPECT_NE(d.see(8.0).action, SpikeAction::none);
  EXPECT_EQ(d.see(8.0).action, SpikeAction::none);
  EXPECT_EQ(d.told.back().reason, SpikeReason::z_score);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(d.see(8.0).reason, SpikeReason::none);
}

TEST(SpikeGuard, SaysWhenLossesStayNonFinite) {
  Decisions d({.patience = 3});
  d.warm_up();
  for (int i = 0; i < 3; ++i) d.see(kNan);
  EXPECT_EQ(testing::message_of([&] { d.see(kNan); }),
            "the loss or the norm of the gradients has been inf or NaN for 4 steps in a row (loss "
            "nan, norm 1), also after 1 roll-backs; look at the data, the learning rate, and what "
            "computes in 16 bits");
}

TEST(SpikeGuard, JudgesLossesBelowZeroAsTheyAreIfToldTo) {
  Decisions logarithmic;
  for (int i = 0; i < 50; ++i) EXPECT_EQ(logarithmic.see(-1.0).action, SpikeAction::none);
  EXPECT_EQ(logarithmic.see(1e9).action, SpikeAction::none);  // nothing to compare with
  Decisions linear({.log_scale = false});
  for (int i = 0; i < 50; ++i) linear.see(-5.0 + 0.1 * (i % 3));
  EXPECT_EQ(linear.see(-4.0).reason, SpikeReason::none);
  EXPECT_EQ(linear.see(-1.0).reason, SpikeReason::z_score);
}

Training::Make sgd(double momentum) {
  return [=](auto p) {
    return std::make_unique<torch::optim::SGD>(p, torch::optim::SGDOptions(0.1).momentum(momentum));
  };
}

struct Kind {
  std::string name;
  Training::Make make;
};

std::vector<Kind> kinds() {
  using namespace torch::optim;
  return {
      {"sgd", sgd(0)},
      {"momentum", sgd(0.9)},
      {"adam", [](auto p) { return std::make_unique<Adam>(p, AdamOptions(0.01).amsgrad(true)); }},
      {"adamw", [](auto p) { return std::make_unique<AdamW>(p, AdamWOptions(0.01)); }},
      {"fused", [](auto p) { return std::make_unique<FusedAdamW>(p, AdamWOptions(0.01)); }},
      {"rmsprop",
       [](auto p) {
         return std::make_unique<RMSprop>(p, RMSpropOptions(0.01).momentum(0.9).centered(true));
       }},
      {"adagrad", [](auto p) { return std::make_unique<Adagrad>(p, AdagradOptions(0.01)); }}};
}

class RollBack : public ::testing::TestWithParam<std::tuple<Kind, int>> {};

/// Parameters, buffers and state are those of the snapshot, bit for bit and in the same tensors, and
/// training goes on from there as it did.
TEST_P(RollBack, RestoresEverything) {
  const auto& [kind, steps] = GetParam();
  Training t(kind.make);
  for (int i = 0; i < steps; ++i) t.step();
  SpikeGuard guard(*t.optimizer, {.model = &*t.model, .skips = 0, .rate_factor = 1});
  const auto before = t.state();
  const auto addresses = [&] {
    std::vector<const void*> all;
    for (const auto& p : t.model->parameters()) all.push_back(p.data_ptr());
    for (const auto& b : t.model->buffers()) all.push_back(b.data_ptr());
    return all;
  };
  const auto where = addresses();
  EXPECT_EQ(guard.observe(at::scalar_tensor(1.0)).action, SpikeAction::none);
  at::manual_seed(8);
  for (int i = 0; i < 3; ++i) t.step();
  const auto after = t.state();
  EXPECT_FALSE(same_state(before, after));
  t.optimizer->param_groups()[0].options().set_lr(100);
  EXPECT_EQ(guard.observe(at::scalar_tensor(kNan)).action, SpikeAction::roll_back);
  EXPECT_TRUE(same_state(t.state(), before));
  EXPECT_EQ(addresses(), where);
  at::manual_seed(8);
  for (int i = 0; i < 3; ++i) t.step();
  EXPECT_TRUE(same_state(t.state(), after));
  // Again, from the same snapshot.
  guard.observe(at::scalar_tensor(kNan), at::scalar_tensor(1.0));
}

INSTANTIATE_TEST_SUITE_P(Optimizers, RollBack,
                         ::testing::Combine(::testing::ValuesIn(kinds()), ::testing::Values(0, 2)),
                         [](const auto& row) {
                           return std::get<0>(row.param).name + "_after_" +
                                  std::to_string(std::get<1>(row.param));
                         });

TEST(SpikeGuard, TakesANewSnapshotEveryFewGoodSteps) {
  for (const bool on_host : {false, true}) {
    Training t;
    SpikeGuard guard(*t.optimizer, {.model = &*t.model,
                                    .skips = 0,
                                    .snapshot_every = 3,
                                    .snapshot_on_host = on_host,
                                    .rate_factor = 1});
    std::vector<StateDict> states;
    for (int i = 0; i < 8; ++i) {
      states.push_back(t.state());
      guard.observe(at::scalar_tensor(1.0));
      t.step();
    }
    guard.observe(at::scalar_tensor(kNan));  // snapshots were taken at 0, 3 and 6
    EXPECT_TRUE(same_state(t.state(), states[6]));
    t.step();
    guard.observe(at::scalar_tensor(1.0));  // too early for the next one
    t.step();
    guard.observe(at::scalar_tensor(kNan));
    EXPECT_TRUE(same_state(t.state(), states[6]));
  }
}

TEST(SpikeGuard, TakesNoSnapshotOfAnElevatedLoss) {
  Decisions d({.skips = 0, .snapshot_every = 1, .rate_factor = 1});
  d.warm_up();
  {
    const at::NoGradGuard no_grad;
    d.parameter.fill_(2);
    d.see(1.4);  // 3.4 spreads up: no spike, but no snapshot
    d.parameter.fill_(3);
  }
  EXPECT_EQ(d.see(1e9).action, SpikeAction::roll_back);
  EXPECT_EQ(d.parameter[0].item<float>(), 1.0f);
}

TEST(SpikeGuard, ASkipPutsBuffersBack) {
  Training t;
  SpikeGuard guard(*t.optimizer, {.model = &*t.model});
  t.step();
  guard.observe(at::scalar_tensor(1.0));
  const auto good = t.state();
  t.loss(at::full({16, 4}, kInf));  // poisons the running statistics
  EXPECT_FALSE(same_state(t.state(), good));
  EXPECT_EQ(guard.observe(at::scalar_tensor(kInf)).action, SpikeAction::skip);
  EXPECT_TRUE(same_state(t.state(), good));
}

TEST(SpikeGuard, LowersTheRateUntilItHasCooledDown) {
  Training t(sgd(0.9));
  const auto rate = [&] { return t.optimizer->param_groups()[0].options().get_lr(); };
  SpikeGuard guard(*t.optimizer, {.skips = 0, .snapshot_every = 4, .cooldown = 5});
  const auto good = [&](int count) {
    for (int i = 0; i < count; ++i) guard.observe(at::scalar_tensor(1.0));
  };
  const auto bad = [&] { guard.observe(at::scalar_tensor(kNan)); };
  good(5);
  bad();
  EXPECT_EQ(rate(), 0.05);
  good(1);
  bad();  // from the snapshot with the whole rate
  EXPECT_EQ(rate(), 0.025);
  good(3);
  bad();  // from a snapshot with a quarter of it
  EXPECT_EQ(rate(), 0.0125);
  EXPECT_EQ(guard.rate_factor(), 0.125);
  good(5);
  EXPECT_EQ(rate(), 0.1);
  EXPECT_EQ(guard.rate_factor(), 1);
  bad();  // from a snapshot with a low rate
  EXPECT_EQ(rate(), 0.05);
}

TEST(SpikeGuard, LeavesRatesToWhoeverWritesThem) {
  Training t;
  std::vector<double> factors;
  SpikeGuard guard(*t.optimizer, {.skips = 0, .cooldown = 2, .scale_rates = [&](double f) {
                                    factors.push_back(f);
                                  }});
  for (const double loss : {1.0, kNan, 1.0, kNan, 1.0, 1.0}) guard.observe(at::scalar_tensor(loss));
  EXPECT_EQ(factors, (std::vector<double>{0.5, 0.5, 4.0}));
}

TEST(SpikeGuard, SaysWhatASnapshotTakes) {
  Training t;
  SpikeGuard guard(*t.optimizer, {.model = &*t.model});
  const int64_t parameters = 4 * (4 * 8 + 8 + 8 + 8 + 8 + 1), buffers = 4 * (8 + 8) + 8;
  EXPECT_EQ(guard.snapshot_bytes(), Bytes(parameters + buffers));
  t.step();
  EXPECT_EQ(guard.snapshot_bytes(), Bytes(3 * parameters + buffers));
  EXPECT_EQ(SpikeGuard(*t.optimizer, {.snapshot_every = 0}).snapshot_bytes(), Bytes(0));
}

TEST(SpikeGuard, WithoutSnapshotsItOnlyClipsAndSkips) {
  Decisions d({.snapshot_every = 0});
  d.warm_up();
  EXPECT_EQ(d.see(5.0).action, SpikeAction::clip);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(d.see(5.0).action, SpikeAction::skip);
}

TEST(SpikeGuard, JudgesTheMeanOfAWindow) {
  Decisions d;
  d.guard.add({at::scalar_tensor(30.0), 10});
  d.guard.add({at::scalar_tensor(10.0), at::scalar_tensor(int64_t{30})});
  EXPECT_EQ(d.guard.observe_window(at::scalar_tensor(1.0)).loss, 1.0);
  d.guard.add({at::scalar_tensor(kNan), 1});
  d.guard.reset_window();
  EXPECT_EQ(d.guard.observe_window().reason, SpikeReason::none);
  EXPECT_EQ(d.see(2.0).step, 1);  // an empty window does not count
}

TEST(SpikeGuard, DropsABatchAndJudgesAWindowOfDroppedOnes) {
  Decisions d;
  d.warm_up();
  EXPECT_FALSE(d.guard.drop(at::scalar_tensor(900.0)));  // large, but not by three orders
  EXPECT_TRUE(d.guard.drop(at::scalar_tensor(2'000.0)));
  EXPECT_TRUE(d.guard.drop(at::scalar_tensor(kNan)));
  EXPECT_EQ(d.guard.dropped(), 2);
  EXPECT_EQ(d.guard.spikes(), 0);
  EXPECT_EQ(d.guard.observe_window().action, SpikeAction::skip);
  EXPECT_TRUE(d.guard.drop(at::scalar_tensor(kNan)));
  EXPECT_EQ(d.see(1.0).action, SpikeAction::none);  // the rest of its window was good
}

TEST(SpikeGuard, AllRanksDecideAlike) {
  // Two ranks of which the other's loss is 3 and its norm 7.
  const Reducer ranks(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::sum) t.add_(at::tensor({3.0, 1.0}, at::kDouble));
    if (op == ReduceOp::max) t.copy_(at::maximum(t, at::tensor({7.0, 0.0}, at::kDouble)));
  });
  Decisions d({.reducer = ranks});
  const auto verdict = d.see(1.0, 2.0);
  EXPECT_EQ(verdict.loss, 2.0);
  EXPECT_EQ(verdict.norm, 7.0);
  // The other rank's gradients are broken.
  const Reducer broken(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::max && t.numel() == 2) t[1].fill_(1);
    if (op == ReduceOp::max && t.numel() == 1) t.fill_(1);
  });
  Decisions e({.reducer = broken});
  EXPECT_EQ(e.see(1.0, 2.0).reason, SpikeReason::non_finite);
  EXPECT_TRUE(e.guard.drop(at::scalar_tensor(1.0)));
}

TEST(SpikeGuard, SavesAndLoads) {
  Decisions whole, resumed;
  std::mt19937_64 random(5);
  std::lognormal_distribution<double> noise(0, 0.2);
  const auto loss = [&](int i) { return i % 61 == 60 ? 50.0 : noise(random); };
  for (int i = 0; i < 100; ++i) whole.see(loss(i));
  resumed.guard.load_state_dict(whole.guard.state_dict());
  EXPECT_EQ(resumed.guard.spikes(), whole.guard.spikes());
  for (int i = 100; i < 400; ++i) {
    const double value = loss(i);
    const auto a = whole.see(value), b = resumed.see(value);
    ASSERT_EQ(a.step, b.step);
    ASSERT_EQ(a.reason, b.reason);
    ASSERT_EQ(a.level, b.level);
    ASSERT_EQ(a.max_norm, b.max_norm);
  }
  for (const auto& [key, value] : Decisions().guard.state_dict()) {
    EXPECT_EQ(value.sizes(), whole.guard.state_dict().at(key).sizes()) << key;
  }
}

TEST(SpikeGuard, RefusesAStateThatIsNotOne) {
  Decisions d;
  d.warm_up();
  const auto good = d.guard.state_dict();
  const auto message = [&](const std::string& key, const at::Tensor& value) {
    auto state = good;
    if (value.defined()) state[key] = value;
    if (!value.defined()) state.erase(key);
    const auto text = testing::message_of<c10::ValueError>([&] { d.guard.load_state_dict(state); });
    EXPECT_TRUE(
        same_state({{"o", d.guard.state_dict()["observed"]}}, {{"o", good.at("observed")}}));
    return text;
  };
  EXPECT_EQ(message("norms", {}), "the saved state of a SpikeGuard has no 'norms'");
  EXPECT_EQ(message("norms", at::tensor({-1.0})),
            "the saved norms must be finite and not below 0, but hold -1");
  EXPECT_EQ(message("in_a_row", state_value(int64_t{-2})),
            "in_a_row must be a finite number, 0 or above, but is -2");
  EXPECT_EQ(message("rate_factor", state_value(0.0)),
            "rate_factor must be a finite number above 0, but is 0");
}

/// Log-losses of clean runs: normal, heavy upper tails, falling, the mean over small batches of
/// mostly tiny losses.
std::vector<std::function<double(int64_t, std::mt19937_64&)>> clean_runs() {
  using Random = std::mt19937_64;
  const auto normal = [](Random& r) { return std::normal_distribution<double>(0, 1)(r); };
  const auto exponential = [](Random& r) { return std::exponential_distribution<double>(1)(r); };
  const auto small_batch = [exponential](int64_t size) {
    return [=](int64_t, Random& r) {
      double sum = 0;
      for (int64_t i = 0; i < size; ++i) {
        const bool wrong = std::uniform_real_distribution<double>(0, 1)(r) < 0.05;
        sum += wrong ? 2 * exponential(r) : 0.02 * exponential(r);
      }
      return sum / static_cast<double>(size);
    };
  };
  return {[=](int64_t, Random& r) { return std::exp(0.05 * normal(r)); },
          [=](int64_t, Random& r) { return std::exp(1.0 * normal(r)); },
          [=](int64_t, Random& r) { return std::exp(0.3 * exponential(r)); },
          [=](int64_t, Random& r) { return std::exp(3.0 * normal(r) - 9); },
          [=](int64_t i, Random& r) {
            return std::pow(1.0 + static_cast<double>(i) / 100, -0.5) * std::exp(0.1 * normal(r));
          },
          small_batch(1),
          small_batch(4),
          small_batch(32)};
}

TEST(SpikeGuard, HardlyEverMistakesNoiseForASpike) {
  constexpr int64_t kSteps = 20'000;
  int64_t spikes = 0, steps = 0;
  for (const auto& run : clean_runs()) {
    std::mt19937_64 random(7);
    Decisions d({.snapshot_every = 0});
    for (int64_t i = 0; i < kSteps; ++i) d.see(run(i, random));
    EXPECT_LE(d.guard.spikes(), kSteps / 5'000) << steps / kSteps;
    spikes += d.guard.spikes();
    steps += kSteps;
  }
  EXPECT_LE(spikes, steps / 10'000);
}

TEST(SpikeGuard, NamesBadArguments) {
  Training t;
  const auto message = [&](const SpikeGuardOptions& options) {
    return testing::message_of<c10::ValueError>([&] { SpikeGuard(*t.optimizer, options); });
  };
  EXPECT_EQ(message({.jump = 1}), "jump must be above 1, but is 1; use infinity to leave it out");
  EXPECT_EQ(message({.z_threshold = kNan}),
            "z_threshold must be above 0, but is nan; use infinity to leave it out");
  EXPECT_EQ(message({.window = 8}), "window must be at least warmup (32), but is 8");
  EXPECT_EQ(message({.warmup = 1}), "warmup must be 2 or more, but is 1; one loss has no spread");
  EXPECT_EQ(message({.min_spread = 0}), "min_spread must be a finite number above 0, but is 0");
  EXPECT_EQ(message({.clips = -1}), "clips must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(message({.skips = -1}), "skips must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(message({.clip_factor = 0}), "clip_factor must be a finite number above 0, but is 0");
  EXPECT_EQ(message({.patience = 0}), "patience must be 1 or more, but is 0");
  EXPECT_EQ(message({.snapshot_every = -1}),
            "snapshot_every must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(message({.rate_factor = 0}), "rate_factor must lie in (0, 1], but is 0");
  EXPECT_EQ(message({.cooldown = -1}), "cooldown must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(testing::message_of<c10::ValueError>(
                [] { SpikeGuard(std::vector<torch::optim::Optimizer*>{}); }),
            "a SpikeGuard needs at least one optimizer, but got none");
  EXPECT_EQ(testing::message_of<c10::ValueError>(
                [] { SpikeGuard(std::vector<torch::optim::Optimizer*>{nullptr}); }),
            "optimizer 0 of a SpikeGuard is a null pointer");
  SpikeGuard guard(*t.optimizer);
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { guard.observe(at::ones({2})); }),
            "a SpikeGuard judges one number, the mean loss, but got shape [2]");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { guard.drop(at::Tensor()); }),
            "a SpikeGuard judges one number, the mean loss, but got an undefined tensor");
  torch::optim::LBFGS lbfgs(t.model->parameters());
  EXPECT_NE(testing::message_of<c10::NotImplementedError>([&] {
              SpikeGuard g(lbfgs);
            }).find("; set snapshot_every = 0 to only clip and skip"),
            std::string::npos);
  SpikeGuard(lbfgs, {.snapshot_every = 0}).observe(at::scalar_tensor(1.0));
}

}  // namespace
}  // namespace torchlore
