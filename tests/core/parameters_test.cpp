#include "torchlore/core/parameters.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <utility>

#include "support/message.hpp"

namespace torchlore {
namespace {

size_t count(const ParameterView& parameters) { return parameters.size(); }

TEST(ParameterView, IsMadeFromWhateverHoldsParameters) {
  torch::nn::Linear layer(3, 2);
  EXPECT_EQ(count(*layer), 2u);
  EXPECT_EQ(count(layer->parameters()), 2u);
  EXPECT_EQ(count({layer->weight, layer->bias}), 2u);
  EXPECT_EQ(count(layer->weight), 1u);
  EXPECT_TRUE(ParameterView(std::vector<at::Tensor>{}).empty());
}

TEST(ParameterView, KeepsTheGroupsOfAnOptimizer) {
  torch::nn::Linear a(3, 2), b(2, 1);
  torch::optim::SGD optimizer(
      std::vector<torch::optim::OptimizerParamGroup>{a->parameters(), {{b->weight}}},
      torch::optim::SGDOptions(0.1));
  const ParameterView view(optimizer);
  ASSERT_EQ(view.groups().size(), 2u);
  EXPECT_EQ(view.groups()[0].size(), 2u);
  EXPECT_TRUE(view.groups()[1][0].is_same(b->weight));
  EXPECT_EQ(count(optimizer.param_groups()[1]), 1u);
}

TEST(ParameterView, SurvivesAMove) {
  ParameterView made{at::ones({1}), at::ones({2})};
  const ParameterView moved = std::move(made);
  int64_t elements = 0;
  moved.for_each([&](const at::Tensor& t) { elements += t.numel(); });
  EXPECT_EQ(elements, 3);
}

TEST(Gradients, LeavesOutWhatHasNone) {
  torch::nn::Linear layer(3, 2);
  layer->bias.mutable_grad() = at::ones({2});
  const auto found = gradients(*layer);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_TRUE(found[0].is_same(layer->bias.grad()));
}

TEST(Gradients, RefusesAnEmptyList) {
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([] { gradients(std::vector<at::Tensor>{}); }),
      "got an empty list of parameters; pass model->parameters(), the model or its optimizer");
}

TEST(ParametersNamed, GivesParametersAndThoseOfSubmodules) {
  struct Net : torch::nn::Module {
    torch::nn::Linear head = register_module("head", torch::nn::Linear(3, 2));
    torch::nn::Linear header = register_module("header", torch::nn::Linear(3, 2));
  } net;
  EXPECT_EQ(parameters_named(net, {"head"}).size(), 2u);
  EXPECT_TRUE(parameters_named(net, {"header.bias"})[0].is_same(net.header->bias));
  EXPECT_EQ(parameters_named(net, {"head.bias", "header"}).size(), 3u);
  EXPECT_TRUE(parameters_named(net, {}).empty());
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { parameters_named(net, {"he"}); }),
            "no parameter of the module is 'he' or lies in a submodule of that name; it has: "
            "head.weight, head.bias, header.weight, header.bias");
}

}  // namespace
}  // namespace torchlore
