// ActivationBudget beside every other stage: a run with it is, bit for bit, the run without it.
#include "torchlore/memory/activation_budget.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "composition/loops.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/memory/compress_activations.hpp"
#include "torchlore/memory/offload_activations.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 6;
constexpr int64_t kBatch = 8;
// Bytes of a layer's activations: what a scope inside takes, while the smaller tensors of the loss
// are the budget's.
constexpr int64_t kLayer = kBatch * 24 * 4;

struct Model {
  Model() {
    at::manual_seed(11);
    body =
        torch::nn::Sequential(torch::nn::Linear(8, 24), torch::nn::GELU(), torch::nn::Dropout(0.2),
                              torch::nn::Linear(24, 24), torch::nn::Tanh());
    head = torch::nn::Linear(24, 4);
    x = at::randn({kSteps * kBatch, 8});
    y = at::randint(4, {kSteps * kBatch}, at::kLong);
  }
  std::vector<at::Tensor> parameters() const {
    auto all = body->parameters();
    for (const auto& p : head->parameters()) all.push_back(p);
    return all;
  }
  torch::nn::Sequential body{nullptr};
  torch::nn::Linear head{nullptr};
  at::Tensor x, y;
};

using Forward = std::function<at::Tensor(Model&, const at::Tensor& x)>;

at::Tensor plain_forward(Model& model, const at::Tensor& x) {
  return model.head(model.body->forward(x));
}

struct Row {
  std::string name;
  TrainingStepOptions options = {};
  std::optional<TrainingStepOptions> without = std::nullopt;  // options of the run without it
  int parts = 1;
  Forward forward = plain_forward;
  bool fused = false;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

struct Doubling : OpHandler {
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    return OpHandler::addmm(bias, a, b, beta, alpha) * 2;
  }
};

template <typename Scope>
Forward inside(Scope make) {
  return [make](Model& model, const at::Tensor& x) {
    const auto scope = make();
    return plain_forward(model, x);
  };
}

std::vector<Row> rows() {
  using testing::fp16;
  const Forward checkpointed = [](Model& model, const at::Tensor& x) {
    return model.head(checkpoint(model.body, x));
  };
  return {
      {.name = "alone"},
      {.name = "autocast_bf16", .options = {.precision = Precision::bf16()}},
      {.name = "autocast_fp16_and_scaler", .options = {.precision = fp16()}},
      {.name = "accumulation", .options = {.accumulate = Accumulate::batches(4)}, .parts = 4},
      {.name = "clipping", .options = {.clip = clip::norm(0.2)}},
      {.name = "fused_optimizer", .fused = true},
      {.name = "everything",
       .options = {.precision = fp16(),
                   .accumulate = Accumulate::batches(2),
                   .clip = clip::norm(0.2)},
       .parts = 2,
       .forward = checkpointed,
       .fused = true},
      {.name = "checkpoint_inside", .forward = checkpointed},
      {.name = "op_mode_inside",
       .forward = inside([] { return OpMode(std::make_shared<Doubling>()); })},
      {.name = "compression_inside",
       .forward = inside([] { return CompressActivations(at::kBFloat16, {kLayer}); })},
      {.name = "offload_inside", .forward = inside([] {
                                   return OffloadActivations(
                                       {.folder = std::filesystem::temp_directory_path(),
                                        .min_bytes = kLayer});
                                 })},
      // The innermost scope takes what autograd saves: nothing is rounded.
      {.name = "compression_stage_around",
       .options = {.activations = Activations::compress(at::kBFloat16, {kLayer})},
       .without = TrainingStepOptions{}},
  };
}

struct Outcome {
  std::vector<at::Tensor> tensors;
  int64_t replayed = 0;
};

template <typename Optimizer>
Outcome train(const Row& row, bool budgeted) {
  Model model;
  Optimizer optimizer(model.parameters(), torch::optim::AdamWOptions(0.02));
  TrainingStep step(optimizer, budgeted ? row.options : row.without.value_or(row.options));
  Outcome outcome;
  for (int i = 0; i < kSteps * row.parts; ++i) {
    const int64_t size = kBatch / row.parts;
    std::shared_ptr<const ActivationBudgetStats> stats;
    const auto result = step([&] {
      std::optional<ActivationBudget> budget;
      if (budgeted) stats = budget.emplace(KiB(0)).stats();
      const auto x = model.x.slice(0, i * size, (i + 1) * size);
      return torch::nn::functional::cross_entropy(row.forward(model, x),
                                                  model.y.slice(0, i * size, (i + 1) * size));
    });
    outcome.tensors.push_back(at::scalar_tensor(result.loss(), at::kDouble));
    if (stats) outcome.replayed += stats->replayed_ops;
  }
  for (const auto& p : model.parameters()) outcome.tensors.push_back(p.detach().clone());
  outcome.tensors.push_back(at::rand({3}));
  return outcome;
}

class BudgetBeside : public ::testing::TestWithParam<Row> {};

TEST_P(BudgetBeside, ChangesNoBit) {
  const auto run = [&](bool budgeted) {
    return GetParam().fused ? train<FusedAdamW>(GetParam(), budgeted)
                            : train<torch::optim::AdamW>(GetParam(), budgeted);
  };
  const auto without = run(false);
  const auto with = run(true);
  EXPECT_GT(with.replayed, 0);
  ASSERT_EQ(with.tensors.size(), without.tensors.size());
  for (size_t i = 0; i < with.tensors.size(); ++i) {
    EXPECT_TRUE(at::equal(with.tensors[i], without.tensors[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Stages, BudgetBeside, ::testing::ValuesIn(rows()),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace torchlore
