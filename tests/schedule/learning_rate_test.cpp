#include "torchlore/schedule/learning_rate.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <memory>
#include <tuple>

#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "torchlore/core/run_state.hpp"
#include "torchlore/optimizer/fused_adagrad.hpp"
#include "torchlore/optimizer/fused_adam.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/optimizer/fused_sgd.hpp"

namespace torchlore {
namespace {

using torch::optim::OptimizerParamGroup;

at::Tensor parameter() { return at::zeros({2}).requires_grad_(); }

std::vector<at::Tensor> parameters() { return {parameter()}; }

std::vector<std::shared_ptr<torch::optim::Optimizer>> optimizers(double rate) {
  using namespace torch::optim;
  return {std::make_shared<SGD>(parameters(), SGDOptions(rate)),
          std::make_shared<Adam>(parameters(), AdamOptions(rate)),
          std::make_shared<AdamW>(parameters(), AdamWOptions(rate)),
          std::make_shared<RMSprop>(parameters(), RMSpropOptions(rate)),
          std::make_shared<Adagrad>(parameters(), AdagradOptions(rate)),
          std::make_shared<LBFGS>(parameters(), LBFGSOptions(rate)),
          std::make_shared<FusedSGD>(parameters(), SGDOptions(rate)),
          std::make_shared<FusedAdam>(parameters(), AdamOptions(rate)),
          std::make_shared<FusedAdamW>(parameters(), AdamWOptions(rate)),
          std::make_shared<FusedAdagrad>(parameters(), AdagradOptions(rate))};
}

TEST(LearningRate, DrivesEveryOptimizer) {
  const auto s = schedule::warmup(3).then(schedule::cosine(8, 0.1));
  for (const auto& optimizer : optimizers(0.5)) {
    LearningRate rate(*optimizer, s);
    for (int64_t t = 0; t < 20; ++t) {
      EXPECT_EQ(optimizer->param_groups()[0].options().get_lr(), 0.5 * s(t));
      EXPECT_EQ(rate.rate(), 0.5 * s(t));
      EXPECT_EQ(rate.steps(), t);
      rate.step();
    }
    EXPECT_EQ(rate.base_rate(), 0.5);
  }
}

/// The momentum, or the first beta, of the optimizer's first group.
double momentum_of(torch::optim::Optimizer& optimizer) {
  using namespace torch::optim;
  auto& options = optimizer.param_groups()[0].options();
  if (auto* o = dynamic_cast<SGDOptions*>(&options)) return o->momentum();
  if (auto* o = dynamic_cast<RMSpropOptions*>(&options)) return o->momentum();
  if (auto* o = dynamic_cast<AdamOptions*>(&options)) return std::get<0>(o->betas());
  if (auto* o = dynamic_cast<AdamWOptions*>(&options)) return std::get<0>(o->betas());
  return std::nan("");
}

TEST(LearningRate, CyclesMomentumWhereThereIsOne) {
  const auto s = schedule::one_cycle(20);
  for (const auto& optimizer : optimizers(0.5)) {
    const double before = momentum_of(*optimizer);
    if (std::isnan(before)) {
      EXPECT_EQ(testing::message_of<c10::ValueError>([&] { LearningRate(*optimizer, s); }),
                "the schedule of group 0 writes momentum, but the group's optimizer has neither "
                "momentum nor betas; make the schedule without, for one_cycle by .cycle_momentum = "
                "false");
      EXPECT_EQ(optimizer->param_groups()[0].options().get_lr(), 0.5);
      continue;
    }
    LearningRate rate(*optimizer, s);
    for (int64_t t = 0; t < 25; ++t) {
      EXPECT_EQ(momentum_of(*optimizer), *s.momentum(t));
      EXPECT_EQ(rate.rate(), 0.5 * s(t));
      rate.step();
    }
    // Without, it is left alone.
    rate.set_schedule(0, schedule::one_cycle(20, {.cycle_momentum = false}));
    rate.step();
    EXPECT_EQ(momentum_of(*optimizer), 0.95);
  }
}

/// SGD with a group per rate.
struct Groups {
  explicit Groups(const std::vector<double>& rates)
      : optimizer(std::vector<OptimizerParamGroup>{}, torch::optim::SGDOptions(1.0)) {
    for (const double rate : rates) add(rate);
  }
  void add(double rate) {
    optimizer.add_param_group({parameters(), std::make_unique<torch::optim::SGDOptions>(rate)});
  }
  torch::optim::SGD optimizer;
};

TEST(LearningRate, GroupsKeepTheirBaseRates) {
  Groups groups({0.1, 0.02, 0.5});
  LearningRate rate(groups.optimizer, schedule::warmup(4));
  for (int64_t t = 0; t < 6; ++t) {
    const double factor = schedule::warmup(4)(t);
    EXPECT_EQ(rate.rates(), (std::vector<double>{0.1 * factor, 0.02 * factor, 0.5 * factor}));
    rate.step();
  }
}

TEST(LearningRate, EachGroupMayHaveItsSchedule) {
  Groups groups({0.1, 0.02});
  LearningRate rate(groups.optimizer, {schedule::warmup(4), schedule::cosine(10)});
  for (int64_t t = 0; t < 12; ++t) {
    EXPECT_EQ(rate.rate(0), 0.1 * schedule::warmup(4)(t));
    EXPECT_EQ(rate.rate(1), 0.02 * schedule::cosine(10)(t));
    rate.step();
  }
  rate.set_schedule(0, schedule::constant(1, 0.25));
  EXPECT_EQ(rate.rate(0), 0.1 * 0.25);
  EXPECT_EQ(rate.rate(1), 0.0);
}

TEST(LearningRate, AGroupAddedLaterFollowsTheLast) {
  Groups groups({0.1, 0.02});
  LearningRate rate(groups.optimizer, {schedule::constant(), schedule::cosine(10)});
  rate.step();
  groups.add(0.7);
  EXPECT_EQ(rate.rate(2), 0.7);
  EXPECT_EQ(rate.base_rate(2), 0.7);
  rate.update();
  EXPECT_EQ(rate.rate(2), 0.7 * schedule::cosine(10)(1));
  groups.add(0.3);
  rate.step();
  EXPECT_EQ(rate.rate(0), 0.1);
  EXPECT_EQ(rate.rate(2), 0.7 * schedule::cosine(10)(2));
  EXPECT_EQ(rate.rate(3), 0.3 * schedule::cosine(10)(2));
}

TEST(LearningRate, ChangesBaseRates) {
  Groups groups({0.1, 0.02});
  LearningRate rate(groups.optimizer, schedule::constant(10, 0.5));
  rate.set_base_rate(1, 0.4);
  EXPECT_EQ(rate.rates(), (std::vector<double>{0.05, 0.2}));
  rate.scale(0.1);
  EXPECT_EQ(rate.rates(), (std::vector<double>{0.1 * 0.1 * 0.5, 0.4 * 0.1 * 0.5}));
  groups.optimizer.param_groups()[0].options().set_lr(9);
  rate.update();
  EXPECT_EQ(rate.rate(0), 0.1 * 0.1 * 0.5);
}

TEST(LearningRate, GoesOnWhereItStood) {
  const auto s = schedule::warmup(5).then(schedule::cosine(30));
  Groups whole({0.1, 0.02}), stopped({0.1, 0.02}), resumed({0.7, 0.9});
  LearningRate a(whole.optimizer, s), b(stopped.optimizer, s);
  for (int i = 0; i < 8; ++i) {
    a.step();
    b.step();
  }
  b.scale(0.5);
  a.scale(0.5);
  LearningRate c(resumed.optimizer, s);
  c.load_state_dict(b.state_dict());
  EXPECT_EQ(c.steps(), 8);
  for (int i = 0; i < 40; ++i) {
    ASSERT_EQ(c.rates(), a.rates());
    a.step();
    c.step();
  }
}

/// Loading the optimizer before or after its rates makes no difference.
TEST(LearningRate, IsPartOfARunState) {
  const testing::TemporaryFolder folder;
  torch::nn::Linear model(2, 2);
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(0.1));
  LearningRate rate(optimizer, schedule::cosine(100));
  {
    RunState run(folder / "a");
    run.add("optimizer", optimizer, *model).add("rate", rate);
    for (int i = 0; i < 30; ++i) rate.step();
    run.save();
  }
  for (const bool rate_first : {false, true}) {
    torch::optim::AdamW again(model->parameters(), torch::optim::AdamWOptions(0.1));
    LearningRate rate_again(again, schedule::cosine(100));
    RunState run(folder / "a");
    if (rate_first) run.add("rate", rate_again);
    run.add("optimizer", again, *model);
    if (!rate_first) run.add("rate", rate_again);
    ASSERT_TRUE(run.resume());
    EXPECT_EQ(rate_again.rate(), rate.rate());
    rate_again.step();
    EXPECT_EQ(rate_again.rate(), 0.1 * schedule::cosine(100)(31));
  }
}

TEST(LearningRate, MayBeMoved) {
  Groups groups({0.1});
  LearningRate first(groups.optimizer, schedule::warmup(4));
  first.step();
  LearningRate second(std::move(first));
  second.step();
  EXPECT_EQ(second.steps(), 2);
  EXPECT_EQ(second.rate(), 0.1 * schedule::warmup(4)(2));
}

TEST(LearningRate, NamesMisuseAndChangesNothing) {
  Groups groups({0.1, 0.02});
  EXPECT_EQ(
      testing::message_of<c10::ValueError>(
          [&] { LearningRate(groups.optimizer, std::vector{schedule::constant()}); }),
      "the optimizer has 2 parameter groups, but there are 1 schedules; give one per group, or "
      "a single one for all");
  LearningRate rate(groups.optimizer,
                    schedule::lambda([](int64_t t) { return t < 2 ? 1.0 : std::nan(""); }));
  rate.step();
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { rate.step(); }),
            "the schedule of group 0 has the factor nan at step 2; factors must be finite and 0 or "
            "above");
  EXPECT_EQ(rate.steps(), 1);
  EXPECT_EQ(rate.rates(), (std::vector<double>{0.1, 0.02}));
  EXPECT_EQ(testing::message_of<c10::ValueError>(
                [&] { rate.set_schedule(1, schedule::lambda([](int64_t) { return -1.0; })); }),
            "the schedule of group 1 has the factor -1 at step 1; factors must be finite and 0 or "
            "above");
  EXPECT_EQ(testing::message_of<c10::IndexError>([&] { rate.rate(2); }),
            "there is no parameter group 2; the optimizer has 2");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { rate.set_base_rate(0, -1); }),
            "a base rate must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { rate.scale(0); }),
            "the factor of LearningRate::scale must be a finite number above 0, but is 0");
  Groups three({1, 2, 3});
  EXPECT_EQ(
      testing::message_of<c10::ValueError>(
          [&] { rate.load_state_dict(LearningRate(three.optimizer).state_dict()); }),
      "the saved state has the base rates of 3 parameter groups, but the optimizer has 2; add "
      "the same groups before loading");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { rate.load_state_dict({}); }),
            "the saved state has no 'steps'; it has: ");
  EXPECT_EQ(rate.rates(), (std::vector<double>{0.1, 0.02}));
  groups.optimizer.param_groups().pop_back();
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([&] { rate.step(); }),
      "the optimizer has 1 parameter groups left of 2; make a new LearningRate after removing "
      "groups");
}

}  // namespace
}  // namespace torchlore
