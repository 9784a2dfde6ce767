// Checkpointing beside every other stage: the losses and the parameters of a training run stay those of
// the run without it, bit for bit.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "composition/loops.hpp"
#include "torchlore/memory/checkpoint_sequential.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;

constexpr int kSteps = 12;
constexpr int64_t kBatch = 16;

struct Outcome {
  std::vector<double> losses;
  std::vector<at::Tensor> state;  // parameters and buffers
};

using Forward = std::function<at::Tensor(std::vector<nn::Sequential>& blocks, at::Tensor x)>;

nn::Sequential block(int64_t in, int64_t out) {
  return nn::Sequential(nn::Linear(in, out), nn::BatchNorm1d(out), nn::GELU(), nn::Dropout(0.1));
}

Outcome train(const TrainingStepOptions& options, const Forward& forward) {
  at::set_num_threads(1);  // the nets are tiny
  at::manual_seed(11);
  std::vector<nn::Sequential> blocks{block(8, 24), block(24, 24), block(24, 8)};
  nn::Linear head(8, 4);
  std::vector<at::Tensor> parameters = head->parameters();
  Outcome outcome;
  for (const auto& b : blocks) {
    for (const auto& p : b->parameters()) parameters.push_back(p);
    for (const auto& buffer : b->buffers()) outcome.state.push_back(buffer);
  }
  const auto x = at::randn({kBatch, 8});
  const auto y = at::randint(4, {kBatch}, at::kLong);
  torch::optim::AdamW optimizer(parameters, torch::optim::AdamWOptions(0.02));
  TrainingStep step(optimizer, options);
  for (int i = 0; i < kSteps; ++i) {
    const auto loss = [&] {
      return nn::functional::cross_entropy(head->forward(forward(blocks, x)), y);
    };
    outcome.losses.push_back(step(loss).loss());
  }
  step.finish();
  outcome.state.insert(outcome.state.end(), parameters.begin(), parameters.end());
  return outcome;
}

struct Way {
  std::string name;
  Forward forward;
};

std::vector<Way> ways() {
  const auto each = [](const CheckpointOptions& options) {
    return [options](std::vector<nn::Sequential>& blocks, at::Tensor x) {
      for (auto& b : blocks) x = checkpoint(options, b, x);
      return x;
    };
  };
  return {
      {"each_block", each({})},
      {"verified", each({.verify = true})},
      {"keeping_matmuls", each({.keep = keep_matmuls()})},
      {"nested",
       [](std::vector<nn::Sequential>& blocks, const at::Tensor& x) {
         const auto both = [a = blocks[0], b = blocks[1]](const at::Tensor& t) {
           return checkpoint(b, checkpoint(a, t));
         };
         auto buffers = blocks[0]->buffers();
         for (const auto& buffer : blocks[1]->buffers()) buffers.push_back(buffer);
         return checkpoint(blocks[2], checkpoint({.buffers = buffers}, both, x));
       }},
      {"sequential",
       [](std::vector<nn::Sequential>& blocks, const at::Tensor& x) {
         return checkpoint_sequential(blocks, x, {.budget = KiB(12)});
       }},
  };
}

std::vector<testing::Loop> loops() {
  auto all = testing::loops();
  const auto offload =
      Activations::offload({.folder = std::filesystem::temp_directory_path(), .min_bytes = 0});
  all.back().options.activations = offload;  // everything
  all.push_back({"offload", {.activations = offload}});
  return all;
}

class CheckpointStage : public ::testing::TestWithParam<std::tuple<Way, testing::Loop>> {};

TEST_P(CheckpointStage, LeavesTheTrainingAsItIs) {
  const auto& [way, loop] = GetParam();
  const auto without = train(loop.options, [](std::vector<nn::Sequential>& blocks, at::Tensor x) {
    for (auto& b : blocks) x = b->forward(x);
    return x;
  });
  const auto with = train(loop.options, way.forward);
  EXPECT_EQ(with.losses, without.losses);
  for (size_t i = 0; i < with.state.size(); ++i) {
    EXPECT_TRUE(at::equal(with.state[i], without.state[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Pairs, CheckpointStage,
                         ::testing::Combine(::testing::ValuesIn(ways()),
                                            ::testing::ValuesIn(loops())),
                         [](const auto& row) {
                           return std::get<0>(row.param).name + "_" + std::get<1>(row.param).name;
                         });

}  // namespace
}  // namespace torchlore
