#include "torchlore/core/optimizer_state.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <memory>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/module_state.hpp"

namespace torchlore {
namespace {

using namespace torch::optim;
using testing::message_of;
using testing::same;
using Make = std::unique_ptr<Optimizer> (*)(std::vector<OptimizerParamGroup>);

/// Two layers; the second one's parameters are the second group.
struct NetImpl : torch::nn::Module {
  NetImpl() {
    first = register_module("first", torch::nn::Linear(3, 4));
    second = register_module("second", torch::nn::Linear(4, 2));
  }
  at::Tensor forward(const at::Tensor& x) { return second(first(x).tanh()); }
  std::vector<OptimizerParamGroup> groups() {
    return {OptimizerParamGroup(first->parameters()), OptimizerParamGroup(second->parameters())};
  }
  torch::nn::Linear first{nullptr}, second{nullptr};
};

StateDict copy_of(const StateDict& state) {
  StateDict copy;
  for (const auto& [key, tensor] : state) copy.emplace(key, tensor.clone());
  return copy;
}

void train(NetImpl& net, Optimizer& optimizer, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; ++i) {
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(i));
    optimizer.zero_grad();
    net.forward(at::randn({8, 3}, generator)).square().mean().backward();
    optimizer.step();
  }
}

struct Case {
  const char* name;
  Make make;
};

class EveryOptimizer : public ::testing::TestWithParam<Case> {};

TEST_P(EveryOptimizer, GoesOnBitForBit) {
  NetImpl net;
  auto optimizer = GetParam().make(net.groups());
  train(net, *optimizer, 0, 4);
  optimizer->param_groups()[1].options().set_lr(0.003);
  const auto model_state = copy_of(module_state_dict(net));
  const auto state = copy_of(optimizer_state_dict(*optimizer, net));
  train(net, *optimizer, 4, 8);

  NetImpl resumed;
  auto other = GetParam().make(resumed.groups());
  load_module_state_dict(resumed, model_state);
  load_optimizer_state_dict(*other, resumed, state);
  EXPECT_EQ(other->param_groups()[1].options().get_lr(), 0.003);
  train(resumed, *other, 4, 8);

  const auto expected = module_state_dict(net);
  for (const auto& [name, tensor] : module_state_dict(resumed)) {
    EXPECT_TRUE(same(tensor, expected.at(name))) << name;
  }
  const auto expected_state = optimizer_state_dict(*optimizer, net);
  const auto resumed_state = optimizer_state_dict(*other, resumed);
  ASSERT_EQ(resumed_state.size(), expected_state.size());
  for (const auto& [name, tensor] : resumed_state) {
    EXPECT_TRUE(same(tensor, expected_state.at(name))) << name;
  }
}

TEST_P(EveryOptimizer, GoesBackInPlace) {
  NetImpl net;
  auto optimizer = GetParam().make(net.groups());
  train(net, *optimizer, 0, 3);
  const auto live = optimizer_state_dict(*optimizer, net);
  const auto state = copy_of(live);
  train(net, *optimizer, 3, 6);
  load_optimizer_state_dict(*optimizer, net, state);
  const auto restored = optimizer_state_dict(*optimizer, net);
  ASSERT_EQ(restored.size(), state.size());
  for (const auto& [name, tensor] : restored) {
    EXPECT_TRUE(same(tensor, state.at(name))) << name;
    if (name.starts_with("state/") && tensor.dim() > 0) {
      EXPECT_EQ(tensor.data_ptr(), live.at(name).data_ptr()) << name;
    }
  }
}

TEST_P(EveryOptimizer, KeepsWhatHasNoStateYetWithoutState) {
  NetImpl net;
  net.second->bias.set_requires_grad(false);
  auto optimizer = GetParam().make(net.groups());
  const auto fresh = copy_of(optimizer_state_dict(*optimizer, net));
  train(net, *optimizer, 0, 2);
  load_optimizer_state_dict(*optimizer, net, fresh);
  const auto restored = optimizer_state_dict(*optimizer, net);
  ASSERT_EQ(restored.size(), fresh.size());
  for (const auto& [name, tensor] : restored) EXPECT_TRUE(same(tensor, fresh.at(name))) << name;
  train(net, *optimizer, 2, 3);  // the lazily made state is made again
}

template <typename O>
std::unique_ptr<Optimizer> make_optimizer(std::vector<OptimizerParamGroup> groups, auto options) {
  return std::make_unique<O>(std::move(groups), options);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, EveryOptimizer,
    ::testing::Values(
        Case{"SGD", [](auto g) { return make_optimizer<SGD>(g, SGDOptions(0.1)); }},
        Case{"SGDMomentum",
             [](auto g) {
               return make_optimizer<SGD>(
                   g, SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(0.01));
             }},
        Case{"Adam",
             [](auto g) {
               return make_optimizer<Adam>(g, AdamOptions(0.01).betas({0.8, 0.95}));
             }},
        Case{"AdamAmsgrad",
             [](auto g) { return make_optimizer<Adam>(g, AdamOptions(0.01).amsgrad(true)); }},
        Case{"AdamW",
             [](auto g) { return make_optimizer<AdamW>(g, AdamWOptions(0.01).weight_decay(0.1)); }},
        Case{"RMSprop", [](auto g) { return make_optimizer<RMSprop>(g, RMSpropOptions(0.01)); }},
        Case{"RMSpropCentered",
             [](auto g) {
               return make_optimizer<RMSprop>(g, RMSpropOptions(0.01).centered(true).momentum(0.9));
             }},
        Case{"Adagrad",
             [](auto g) {
               return make_optimizer<Adagrad>(
                   g, AdagradOptions(0.1).lr_decay(0.01).initial_accumulator_value(0.5));
             }}),
    [](const auto& test) { return test.param.name; });

TEST(OptimizerState, IsKeyedByNameWhateverTheOrder) {
  NetImpl net;
  AdamW forwards(net.parameters());
  train(net, forwards, 0, 2);
  auto parameters = net.parameters();
  std::reverse(parameters.begin(), parameters.end());
  AdamW backwards(parameters);
  const auto state = optimizer_state_dict(forwards, net);
  load_optimizer_state_dict(backwards, net, state);
  const auto loaded = optimizer_state_dict(backwards, net);
  EXPECT_TRUE(
      same(loaded.at("state/first.weight/exp_avg"), state.at("state/first.weight/exp_avg")));
  EXPECT_EQ(state_int(loaded, "state/second.bias/step"), 2);
}

TEST(OptimizerState, SavesATiedParameterOnce) {
  torch::nn::Module model;
  const auto weight = model.register_parameter("a", at::zeros({2}));
  model.register_parameter("b", weight);
  SGD optimizer(std::vector<at::Tensor>{weight}, SGDOptions(0.1).momentum(0.9));
  weight.mutable_grad() = at::zeros({2});
  optimizer.step();
  const auto state = optimizer_state_dict(optimizer, model);
  EXPECT_TRUE(state.contains("state/a/momentum_buffer"));
  EXPECT_FALSE(state.contains("state/b/momentum_buffer"));
}

TEST(OptimizerState, ServesDerivedClasses) {
  struct Mine : AdamW {
    using AdamW::AdamW;
  };
  NetImpl net;
  AdamW plain(net.groups());
  train(net, plain, 0, 2);
  Mine mine(net.groups());
  load_optimizer_state_dict(mine, net, optimizer_state_dict(plain, net));
  EXPECT_EQ(state_int(optimizer_state_dict(mine, net), "state/first.bias/step"), 2);
}

TEST(OptimizerState, NamesEveryDifferenceAndChangesNothing) {
  NetImpl net;
  AdamW optimizer(net.groups());
  train(net, optimizer, 0, 1);
  auto state = copy_of(optimizer_state_dict(optimizer, net));
  state.erase("groups/0/lr");
  state.at("groups/1/parameters") = state.at("groups/0/parameters");
  state.emplace("groups/2/lr", state_value(0.1));
  state.at("state/first.weight/exp_avg") = at::zeros({1});
  state.at("state/first.weight/exp_avg_sq") = at::zeros({4, 3}, at::kLong);
  state.erase("state/first.bias/step");
  state.erase("state/first.bias/exp_avg_sq");
  state.emplace("state/first.bias/velocity", at::zeros({4}));
  state.emplace("state/third.bias/step", state_value(int64_t{1}));
  optimizer.state().erase(net.first->weight.unsafeGetTensorImpl());
  EXPECT_EQ(message_of<c10::ValueError>([&] { load_optimizer_state_dict(optimizer, net, state); }),
            "the saved state does not fit the optimizer, and nothing was changed; 12 differences:\n"
            "  groups/0/lr: missing in the saved state\n"
            "  groups/1/parameters/second.bias: missing in the saved state\n"
            "  groups/1/parameters/second.weight: missing in the saved state\n"
            "  groups/1/parameters/first.bias: only in the saved state\n"
            "  groups/1/parameters/first.weight: only in the saved state\n"
            "  groups/2/lr: only in the saved state\n"
            "  state/first.bias/exp_avg_sq: missing in the saved state\n"
            "  state/first.bias/step: missing in the saved state\n"
            "  state/first.bias/velocity: only in the saved state\n"
            "  state/first.weight/exp_avg: shape [1] in the saved state, [4, 3] here\n"
            "  and 2 more");
  EXPECT_EQ(optimizer.state().count(net.first->weight.unsafeGetTensorImpl()), 0u);
}

TEST(OptimizerState, RefusesAnotherKind) {
  NetImpl net;
  Adam adam(net.parameters());
  AdamW adamw(net.parameters());
  auto state = optimizer_state_dict(adam, net);
  EXPECT_EQ(message_of<c10::ValueError>([&] { load_optimizer_state_dict(adamw, net, state); }),
            "the saved state does not fit the optimizer, and nothing was changed; 1 difference:\n"
            "  kind: Adam in the saved state, AdamW here");
  EXPECT_EQ(message_of<c10::ValueError>([&] { load_optimizer_state_dict(adamw, net, {}); }),
            "the saved state does not fit the optimizer, and nothing was changed; 1 difference:\n"
            "  kind: missing in the saved state");
}

TEST(OptimizerState, RefusesAParameterOfAnotherModel) {
  NetImpl net, other;
  SGD optimizer(net.groups(), SGDOptions(0.1));
  EXPECT_EQ(
      message_of<c10::ValueError>([&] { optimizer_state_dict(optimizer, other); }),
      "parameter 0 of group 0 of the optimizer (shape [4, 3]) is not a parameter of the model; "
      "pass the model whose parameters the optimizer was made with");
}

TEST(OptimizerState, RefusesStateOfAnotherType) {
  NetImpl net;
  AdamW optimizer(net.groups());
  optimizer.state()[net.first->bias.unsafeGetTensorImpl()] = std::make_unique<AdamParamState>();
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { optimizer_state_dict(optimizer, net); }),
            "cannot save the optimizer: it keeps state of type torch::optim::AdamParamState where "
            "its base class keeps torch::optim::AdamWParamState; give it state_dict() and "
            "load_state_dict() and save it by them");
}

TEST(OptimizerState, RefusesLbfgs) {
  NetImpl net;
  LBFGS optimizer(net.parameters());
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { optimizer_state_dict(optimizer, net); }),
            "cannot save an optimizer of type torch::optim::LBFGS: only SGD, Adam, AdamW, RMSprop, "
            "Adagrad and classes derived from them keep state that can be keyed by parameter name; "
            "for another one write a class with state_dict() and load_state_dict()");
}

}  // namespace
}  // namespace torchlore
