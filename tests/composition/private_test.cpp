// Private training beside every other stage: what must stay equal, in weights and in what is spent.
//
// The reference is the same in plain calls: the clipped sum of the whole batch, noise, a division by the
// expected batch, and what the other stage does with gradients by hand.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <functional>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "support/fake_clock.hpp"
#include "support/thread_ranks.hpp"
#include "support/tolerance.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 6;
constexpr int64_t kBatch = 16;
constexpr double kRate = 0.02, kNorm = 0.5, kNoise = 0.8;
using Data = std::tuple<at::Tensor, at::Tensor>;

/// A small model; `tied` uses one layer twice, `frozen` trains only a part.
struct Model {
  explicit Model(bool frozen = false) {
    at::set_num_threads(1);
    at::manual_seed(11);
    body = torch::nn::Sequential(torch::nn::Linear(8, 8), torch::nn::GELU());
    shared = torch::nn::Linear(8, 8);
    head = torch::nn::Linear(8, 4);
    all->push_back(body);
    all->push_back(shared);
    all->push_back(head);
    if (frozen) body[0]->as<torch::nn::Linear>()->weight.requires_grad_(false);
    data = {at::randn({kBatch, 8}), at::randint(4, {kBatch}, at::kLong)};
  }
  at::Tensor losses(const Data& batch, bool checkpointed = false) {
    const auto& [x, y] = batch;
    const auto h = checkpointed ? checkpoint(body, x) : body->forward(x);
    const auto out = head->forward(shared->forward(shared->forward(h).tanh()));
    using Options = torch::nn::functional::CrossEntropyFuncOptions;
    return torch::nn::functional::cross_entropy(out, y, Options().reduction(torch::kNone));
  }
  at::Tensor weights() const {
    std::vector<at::Tensor> flat;
    for (const auto& p : all->parameters()) flat.push_back(p.detach().reshape(-1));
    return at::cat(flat);
  }
  std::vector<at::Tensor> trained() const {
    std::vector<at::Tensor> result;
    for (const auto& p : all->parameters()) {
      if (p.requires_grad()) result.push_back(p);
    }
    return result;
  }

  torch::nn::Sequential body{nullptr};
  torch::nn::ModuleList all;
  torch::nn::Linear shared{nullptr}, head{nullptr};
  Data data;
};

DifferentiallyPrivateOptions private_options(double noise = kNoise) {
  return {.noise_multiplier = noise,
          .max_grad_norm = kNorm,
          .dataset_size = kBatch,
          .expected_batch = kBatch,
          .noise = NoiseSource::fast_not_secure(7)};
}

/// By hand. `before_step` may change gradients and rates.
at::Tensor by_hand(const std::function<void(Model&, torch::optim::AdamW&, int)>& before_step = {},
                   bool frozen = false) {
  Model model(frozen);
  const auto source = NoiseSource::fast_not_secure(7);
  torch::optim::AdamW optimizer(model.trained(), torch::optim::AdamWOptions(kRate));
  for (int i = 0; i < kSteps; ++i) {
    optimizer.zero_grad();
    add_clipped_sum(model.losses(model.data), *model.all, ExampleClipping::flat(kNorm));
    std::vector<at::Tensor> gradients;
    for (const auto& p : model.trained()) gradients.push_back(p.grad());
    add_gaussian_noise_(gradients, kNoise * kNorm, source);
    for (auto& g : gradients) g.div_(kBatch);
    if (before_step) before_step(model, optimizer, i);
    optimizer.step();
  }
  return model.weights();
}

/// The stages beside the private one, and the faults to live through.
struct Row {
  std::string name;
  TrainingStepOptions stages = {};
  int64_t parts = 1;        // micro-batches of a logical batch
  int64_t physical = 0;     // examples that go through the model at once
  int64_t fits = kBatch;    // more run out of memory
  bool fails_once = false;  // every first attempt
  bool checkpointed = false;
  bool frozen = false;
  bool fused = false;
  std::function<void(Model&, torch::optim::AdamW&, int)> before_step = {};
  double tolerance = 2e-5;  // of the weights
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

at::Tensor with_step(const Row& row) {
  Model model(row.frozen);
  testing::FakeClock time;
  auto options = private_options();
  options.physical_batch = row.physical;
  const auto dp = differentially_private(*model.all, options);
  const auto adam = torch::optim::AdamWOptions(kRate);
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  if (row.fused) {
    optimizer = std::make_unique<FusedAdamW>(model.trained(), adam);
  } else {
    optimizer = std::make_unique<torch::optim::AdamW>(model.trained(), adam);
  }
  auto stages = row.stages;
  stages.gradient = dp;
  stages.accumulate = Accumulate::batches(row.parts);
  if (stages.retry) stages.retry->clock = time.clock();
  TrainingStep step(*optimizer, stages);
  for (int i = 0; i < kSteps; ++i) {
    for (int64_t part = 0; part < row.parts; ++part) {
      bool failed = !row.fails_once;
      const int64_t size = kBatch / row.parts;
      const auto micro = slice(model.data, part * size, (part + 1) * size);
      const auto r = step(micro, [&](const Data& data) {
        const auto losses = model.losses(data, row.checkpointed);
        // In the last part of a call, so that there is something to undo.
        const bool last = at::equal(std::get<1>(data)[-1], std::get<1>(micro)[-1]);
        if (std::get<0>(data).size(0) > row.fits || (!failed && last)) {
          failed = true;
          C10_THROW_ERROR(OutOfMemoryError, "injected");
        }
        return losses;
      });
      EXPECT_EQ(r.stepped(), part + 1 == row.parts);
    }
  }
  EXPECT_EQ(dp.steps(), kSteps);
  EXPECT_EQ(dp.spent().events().size(), 1u);
  EXPECT_EQ(dp.spent().events().at(0).steps, kSteps);
  return model.weights();
}

void clip_by_norm(Model& model, torch::optim::AdamW&, int) {
  torch::nn::utils::clip_grad_norm_(model.trained(), 0.02);
}
void clip_by_value(Model& model, torch::optim::AdamW&, int) {
  torch::nn::utils::clip_grad_value_(model.trained(), 0.005);
}
void set_rate(Model&, torch::optim::AdamW& optimizer, int i) {
  const double factor = schedule::cosine(kSteps)(i);
  for (auto& group : optimizer.param_groups()) group.options().set_lr(kRate * factor);
}

std::vector<Row> rows() {
  const auto retry = RetryOptions{};
  const auto split = SplitOptions{};
  return {
      {.name = "alone", .tolerance = 0},
      {.name = "fused_optimizer", .fused = true},
      {.name = "frozen", .frozen = true, .tolerance = 0},
      {.name = "accumulation", .parts = 4},
      {.name = "physical_batches", .physical = 5},
      {.name = "accumulation_physical_batches", .parts = 2, .physical = 3},
      {.name = "checkpoint", .checkpointed = true},
      {.name = "budget", .stages = {.activations = Activations::budget(Bytes(0))}},
      {.name = "offload", .stages = {.activations = Activations::offload({.min_bytes = 0})}},
      {.name = "compress",
       .stages = {.activations = Activations::compress(at::kBFloat16, {.min_bytes = 0})},
       .tolerance = 2e-2},
      {.name = "autocast", .stages = {.precision = Precision::bf16()}, .tolerance = 5e-2},
      {.name = "clip_norm", .stages = {.clip = clip::norm(0.02)}, .before_step = clip_by_norm},
      {.name = "clip_value", .stages = {.clip = clip::value(0.005)}, .before_step = clip_by_value},
      {.name = "schedule",
       .stages = {.schedule = schedule::cosine(kSteps)},
       .before_step = set_rate},
      {.name = "idle_retry", .stages = {.retry = retry}, .tolerance = 0},
      {.name = "retry", .stages = {.retry = retry}, .fails_once = true, .tolerance = 0},
      {.name = "retry_physical_batches",
       .stages = {.retry = retry},
       .physical = 5,
       .fails_once = true},
      {.name = "retry_accumulation", .stages = {.retry = retry}, .parts = 4, .fails_once = true},
      {.name = "idle_split", .stages = {.split = split}, .tolerance = 0},
      {.name = "split", .stages = {.split = split}, .fits = 5},
      {.name = "split_accumulation", .stages = {.split = split}, .parts = 2, .fits = 3},
      {.name = "retry_split",
       .stages = {.retry = retry, .split = split},
       .fits = 5,
       .fails_once = true},
      {.name = "everything",
       .stages = {.activations = Activations::budget(Bytes(0)),
                  .clip = clip::norm(0.02),
                  .retry = retry,
                  .split = split},
       .parts = 2,
       .physical = 3,
       .fits = 5,
       .fails_once = true,
       .fused = true,
       .before_step = clip_by_norm},
  };
}

class PrivateStage : public ::testing::TestWithParam<Row> {};

TEST_P(PrivateStage, EqualsTheReference) {
  const auto& row = GetParam();
  const auto ours = with_step(row);
  const auto reference = by_hand(row.before_step, row.frozen);
  EXPECT_LE((ours - reference).abs().max().item<double>(), row.tolerance);
}

INSTANTIATE_TEST_SUITE_P(Pairs, PrivateStage, ::testing::ValuesIn(rows()),
                         [](const auto& row) { return row.param.name; });

TEST(PrivateStage, RanksEndWithTheWeightsOfOne) {
  const auto reference = by_hand();
  testing::run_ranks(2, [&](const Reducer& ranks) {
    static std::mutex seeding;  // the generator is the process's
    std::unique_ptr<Model> model;
    {
      const std::lock_guard lock(seeding);
      model = std::make_unique<Model>();
    }
    torch::optim::AdamW optimizer(model->trained(), torch::optim::AdamWOptions(kRate));
    const auto dp = differentially_private(*model->all, private_options());
    TrainingStep step(optimizer, {.gradient = dp, .reducer = ranks});
    const int64_t from = ranks.rank() == 0 ? 0 : 6, to = ranks.rank() == 0 ? 6 : kBatch;
    for (int i = 0; i < kSteps; ++i) {
      step(slice(model->data, from, to), [&](const Data& part) { return model->losses(part); });
    }
    EXPECT_EQ(dp.steps(), kSteps);
    EXPECT_LE((model->weights() - reference).abs().max().item<double>(), 2e-5);
  });
}

TEST(PrivateStage, AnAverageOfNoisyWeightsIsFree) {
  Model model;
  torch::optim::AdamW optimizer(model.trained(), torch::optim::AdamWOptions(kRate));
  const auto dp = differentially_private(*model.all, private_options());
  auto average = WeightAverage::swa(*model.all);
  TrainingStep step(optimizer, {.gradient = dp, .average = average});
  auto mean = at::zeros_like(model.weights());
  for (int i = 0; i < kSteps; ++i) {
    step(model.data, [&](const Data& part) { return model.losses(part); });
    mean += model.weights() / kSteps;
  }
  const auto swapped = average.swap();
  EXPECT_TRUE(testing::close(model.weights(), mean));
  EXPECT_EQ(dp.steps(), kSteps);
}

// A batch that never fits is not counted, not noised, and leaves the window as it was.
TEST(PrivateStage, WhatIsGivenUpIsNotSpent) {
  Model model;
  testing::FakeClock time;
  torch::optim::AdamW optimizer(model.trained(), torch::optim::AdamWOptions(kRate));
  const auto dp = differentially_private(*model.all, private_options());
  TrainingStep step(optimizer, {.gradient = dp, .retry = RetryOptions{.clock = time.clock()}});
  const auto before = model.weights();
  EXPECT_THROW(
      step(model.data,
           [&](const Data&) -> at::Tensor { C10_THROW_ERROR(OutOfMemoryError, "injected"); }),
      c10::OutOfMemoryError);
  EXPECT_EQ(dp.steps(), 0);
  EXPECT_TRUE(dp.spent().empty());
  EXPECT_TRUE(testing::same(model.weights(), before));
  EXPECT_TRUE(step(model.data, [&](const Data& part) { return model.losses(part); }).stepped());
  EXPECT_EQ(dp.steps(), 1);
}

}  // namespace
}  // namespace torchlore
