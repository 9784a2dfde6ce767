// ActivationBudget over modules of torch::nn, as they are.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/modules/transformer.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/nn/modules/upsampling.h>

#include "budget_support.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::BudgetCase;
using testing::expect_exact;

struct ActivationBudgetModules : ::testing::Test {
  ActivationBudgetModules() {
    at::set_num_threads(1);
    testing::seed(0);
  }
};

template <typename Holder>
BudgetCase mean_square(Holder module, at::Tensor x) {
  return {.parameters = module->parameters(),
          .loss = [module, x]() mutable { return module->forward(x).pow(2).mean(); },
          .buffers = module->buffers()};
}

TEST_F(ActivationBudgetModules, InPlaceActivations) {
  nn::Sequential net(nn::Linear(64, 64), nn::ReLU(nn::ReLUOptions(true)), nn::Linear(64, 64),
                     nn::ELU(nn::ELUOptions().inplace(true)), nn::Linear(64, 64), nn::Sigmoid(),
                     nn::Linear(64, 8));
  expect_exact(mean_square(net, at::randn({16, 64})));
}

TEST_F(ActivationBudgetModules, DropoutsOfAllKinds) {
  nn::Sequential net(nn::Linear(64, 64), nn::Dropout(.3), nn::Linear(64, 64),
                     nn::Dropout(nn::DropoutOptions(.3).inplace(true)), nn::AlphaDropout(.2),
                     nn::FeatureAlphaDropout(.2), nn::Linear(64, 8));
  expect_exact(mean_square(net, at::randn({16, 64})));
}

TEST_F(ActivationBudgetModules, ConvolutionsAndBatchNorms) {
  nn::Sequential net(nn::Conv2d(nn::Conv2dOptions(3, 8, 3).padding(1)), nn::BatchNorm2d(8),
                     nn::ReLU(nn::ReLUOptions(true)), nn::MaxPool2d(2), nn::Conv2d(8, 8, 3),
                     nn::BatchNorm2d(8), nn::LeakyReLU(nn::LeakyReLUOptions().inplace(true)),
                     nn::Dropout2d(.2), nn::AdaptiveAvgPool2d(1), nn::Flatten(), nn::Linear(8, 4));
  const auto x = at::randn({8, 3, 16, 16});
  const auto stats = expect_exact(mean_square(net, x));
  EXPECT_LE(stats.pinned_bytes, 16);  // the two counters of batches
  net->eval();
  expect_exact(mean_square(net, x));
}

TEST_F(ActivationBudgetModules, OtherNormsAndUpsampling) {
  nn::Sequential net(
      nn::Conv2d(nn::Conv2dOptions(8, 8, 3).padding(1).padding_mode(torch::kReflect)),
      nn::GroupNorm(4, 8), nn::ELU(), nn::ConvTranspose2d(8, 8, 3),
      nn::InstanceNorm2d(nn::InstanceNorm2dOptions(8).affine(true).track_running_stats(true)),
      nn::PReLU(),
      nn::Upsample(nn::UpsampleOptions()
                       .scale_factor(std::vector<double>{2., 2.})
                       .mode(torch::kBilinear)
                       .align_corners(false)));
  expect_exact(mean_square(net, at::randn({2, 8, 10, 10})));
}

template <typename Holder>
BudgetCase recurrent(Holder module, at::Tensor x) {
  return {.parameters = module->parameters(),
          .loss = [module, x]() mutable { return std::get<0>(module->forward(x)).pow(2).mean(); },
          // The workspace of oneDNN's layer has bytes that nobody writes or reads.
          .may_mismatch = "aten::mkldnn_rnn_layer"};
}

TEST_F(ActivationBudgetModules, LSTM) {
  const auto x = at::randn({12, 4, 32});
  const auto stats =
      expect_exact(recurrent(nn::LSTM(nn::LSTMOptions(32, 48).num_layers(3).dropout(.2)), x));
  // Its kernels read through pointers that could write, forwards and backwards.
  EXPECT_EQ(stats.touched, 0);
  EXPECT_EQ(stats.pinned_bytes, 0);
  expect_exact(recurrent(nn::LSTM(nn::LSTMOptions(32, 48).num_layers(2).bidirectional(true)), x));
}

TEST_F(ActivationBudgetModules, GRUAndRNN) {
  const auto x = at::randn({12, 4, 32});
  expect_exact(recurrent(nn::GRU(nn::GRUOptions(32, 48).num_layers(2).dropout(.2)), x));
  expect_exact(recurrent(nn::RNN(nn::RNNOptions(32, 48).num_layers(2)), x));
}

TEST_F(ActivationBudgetModules, LSTMCellInALoop) {
  nn::LSTMCell cell(32, 32);
  const auto x = at::randn({10, 4, 32});
  expect_exact({.parameters = cell->parameters(), .loss = [cell, x]() mutable {
                  std::tuple<at::Tensor, at::Tensor> state{at::zeros({4, 32}), at::zeros({4, 32})};
                  for (int64_t t = 0; t < 10; ++t) state = cell->forward(x[t], state);
                  return std::get<0>(state).pow(2).mean();
                }});
}

TEST_F(ActivationBudgetModules, TransformerEncoderLayer) {
  nn::TransformerEncoderLayer layer(
      nn::TransformerEncoderLayerOptions(32, 4).dim_feedforward(64).dropout(.1));
  const auto x = at::randn({10, 4, 32});
  const auto stats = expect_exact(mean_square(layer, x));
  EXPECT_EQ(stats.pinned_bytes, 0);
  expect_exact({.parameters = layer->parameters(), .loss = [layer, x]() mutable {
                  const Autocast amp(at::kCPU);
                  return layer->forward(x).to(at::kFloat).pow(2).mean();
                }});
}

TEST_F(ActivationBudgetModules, Transformer) {
  nn::Transformer net(nn::TransformerOptions(32, 4, 2, 2).dim_feedforward(64));
  const auto source = at::randn({10, 4, 32});
  const auto target = at::randn({7, 4, 32});
  const auto mask = nn::TransformerImpl::generate_square_subsequent_mask(7);
  expect_exact({.parameters = net->parameters(), .loss = [=]() mutable {
                  return net->forward(source, target, {}, mask).pow(2).mean();
                }});
}

}  // namespace
}  // namespace torchlore
