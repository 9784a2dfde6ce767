#include "torchlore/optimizer/recalibrate_batch_norm.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>

#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "test_paths.hpp"

namespace torchlore {
namespace {

using torch::nn::BatchNorm1d;
using torch::nn::BatchNormOptions;
using torch::nn::Linear;
using torch::nn::Sequential;

/// The model, weights and batches of tests/oracles/weight_averages.py.
Sequential make_model() {
  Sequential model(Linear(3, 2), BatchNorm1d(2), torch::nn::ReLU(), Linear(2, 2),
                   BatchNorm1d(BatchNormOptions(2).momentum(0.3)));
  model->to(at::kDouble);
  const at::NoGradGuard no_grad;
  int k = 0;
  for (const auto& p : model->parameters()) {
    for (int i = 0; i < p.numel(); ++i) {
      p.view(-1)[i].fill_(std::cos(0.3 * 4 + 1.1 * i + 0.5 * k));
    }
    ++k;
  }
  return model;
}

torch::nn::BatchNorm1dImpl& norm_at(const Sequential& model, size_t index) {
  return dynamic_cast<torch::nn::BatchNorm1dImpl&>(*model->children().at(index));
}

std::vector<at::Tensor> batches() {
  std::vector<at::Tensor> all;
  for (int b = 0; b < 3; ++b) {
    all.push_back(at::empty({5 + b, 3}, at::kDouble));
    for (int i = 0; i < 5 + b; ++i) {
      for (int j = 0; j < 3; ++j) all.back()[i][j].fill_(std::sin(1.7 * i + 0.9 * j + b));
    }
  }
  return all;
}

at::Tensor flat_buffers(const torch::nn::Module& model) {
  std::vector<at::Tensor> flat;
  for (const auto& b : model.buffers()) flat.push_back(b.to(at::kDouble).reshape(-1));
  return at::cat(flat);
}

void run_all(Sequential& model) {
  for (const auto& batch : batches()) model->forward(batch);
}

TEST(RecalibrateBatchNorm, EqualsUpdateBn) {
  std::ifstream file(std::string(TORCHLORE_TEST_DATA) + "/weight_averages.txt");
  std::string line;
  while (std::getline(file, line) && line != "case recalibrated") {
  }
  ASSERT_TRUE(std::getline(file, line));
  std::istringstream words(line);
  std::vector<double> expected;
  double value = 0;
  words >> value;
  while (words >> value) expected.push_back(value);
  auto model = make_model();
  model->forward(at::ones({4, 3}, at::kDouble));  // statistics of another time
  EXPECT_EQ(recalibrate_batch_norm(*model, [&] { run_all(model); }), 2);
  EXPECT_TRUE(testing::close(flat_buffers(*model), at::tensor(expected, at::kDouble)));
}

TEST(RecalibrateBatchNorm, GivesModesAndMomentaBack) {
  auto model = make_model();
  model->push_back(torch::nn::Dropout(0.5));
  auto& first = norm_at(model, 1);
  auto& second = norm_at(model, 4);
  for (const bool training : {false, true}) {
    model->train(training);
    first.eval();  // frozen by its user
    recalibrate_batch_norm(*model, [&] {
      EXPECT_TRUE(first.is_training());
      EXPECT_TRUE(model->is_training());
      EXPECT_FALSE(first.options.momentum().has_value());
      EXPECT_FALSE(model->forward(batches()[0]).requires_grad());
    });
    EXPECT_FALSE(first.is_training());
    EXPECT_EQ(second.is_training(), training);
    EXPECT_EQ(model->is_training(), training);
    EXPECT_EQ(first.options.momentum(), 0.1);
    EXPECT_EQ(second.options.momentum(), 0.3);
  }
}

TEST(RecalibrateBatchNorm, AThrowBringsTheOldStatisticsBack) {
  auto model = make_model();
  run_all(model);
  model->eval();
  const auto before = flat_buffers(*model);
  EXPECT_THROW(recalibrate_batch_norm(*model,
                                      [&] {
                                        model->forward(batches()[0]);
                                        throw std::runtime_error("the loader failed");
                                      }),
               std::runtime_error);
  EXPECT_TRUE(testing::same(flat_buffers(*model), before));
  EXPECT_FALSE(model->is_training());
  EXPECT_EQ(norm_at(model, 4).options.momentum(), 0.3);
}

TEST(RecalibrateBatchNorm, ALayerThatNoBatchReachesKeepsItsStatistics) {
  auto model = make_model();
  run_all(model);
  auto& second = norm_at(model, 4);
  const auto before = second.running_mean.clone();
  auto first_two = [&] {
    auto& linear = model->at<torch::nn::LinearImpl>(0);
    norm_at(model, 1).forward(linear.forward(batches()[0]));
  };
  EXPECT_EQ(recalibrate_batch_norm(*model, first_two), 1);
  EXPECT_TRUE(testing::same(second.running_mean, before));
  const auto all = flat_buffers(*model);
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([&] { recalibrate_batch_norm(*model, [] {}); }),
      "recalibrate_batch_norm: no batch reached any of the model's 2 batch norms; run the model "
      "itself in the function, on at least one batch");
  EXPECT_TRUE(testing::same(flat_buffers(*model), all));
}

TEST(RecalibrateBatchNorm, AModelWithoutOneIsNotRun) {
  Sequential model(Linear(3, 2), BatchNorm1d(BatchNormOptions(2).track_running_stats(false)));
  EXPECT_EQ(recalibrate_batch_norm(*model, [] { FAIL() << "called"; }), 0);
}

/// One batch norm under two names.
struct Twice : torch::nn::Module {
  Twice() {
    norm = register_module("first", BatchNorm1d(2));
    register_module("second", norm.ptr());
  }
  BatchNorm1d norm{nullptr};
};

TEST(RecalibrateBatchNorm, ASharedLayerCountsOnce) {
  Twice model;
  EXPECT_EQ(recalibrate_batch_norm(model, [&] { model.norm(at::ones({3, 2})); }), 1);
  EXPECT_EQ(model.norm->options.momentum(), 0.1);
  EXPECT_EQ(model.norm->running_mean[0].item<double>(), 1);
}

}  // namespace
}  // namespace torchlore
