// The composition matrix: for every pair of stages, what must stay equal when both are on.
//
// Each row is one pair. It trains the same small model twice and compares the loss curve and the final
// parameters: once with both stages in a TrainingStep, once in a reference that spells the pair out in
// plain LibTorch with the least that says the same. A later stage adds its rows here.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <functional>
#include <string>
#include <vector>

#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/step.hpp"

namespace torchlore {
namespace {

constexpr int kSteps = 12;
constexpr int64_t kBatch = 16;
constexpr double kLearningRate = 0.02;
constexpr double kMaxNorm = 0.2;

struct Model {
  Model() {
    at::manual_seed(11);
    net = torch::nn::Sequential(torch::nn::Linear(8, 24), torch::nn::GELU(),
                                torch::nn::Linear(24, 4));
    x = at::randn({kSteps * kBatch, 8});
    y = at::randint(4, {kSteps * kBatch}, at::kLong);
  }
  at::Tensor loss(int64_t from, int64_t to) {
    return torch::nn::functional::cross_entropy(net->forward(x.slice(0, from, to)),
                                                y.slice(0, from, to));
  }
  torch::nn::Sequential net{nullptr};
  at::Tensor x, y;
};

struct Outcome {
  std::vector<double> losses;
  at::Tensor parameters;
};

Outcome outcome(const Model& model, std::vector<double> losses) {
  std::vector<at::Tensor> flat;
  for (const auto& p : model.net->parameters()) flat.push_back(p.detach().reshape(-1));
  return {std::move(losses), at::cat(flat)};
}

/// Trains with a TrainingStep; `parts` micro-batches make one step.
template <typename Optimizer>
Outcome with_step(TrainingStepOptions options, int parts) {
  Model model;
  Optimizer optimizer(model.net->parameters(), torch::optim::AdamWOptions(kLearningRate));
  TrainingStep step(optimizer, std::move(options));
  std::vector<double> losses;
  for (int i = 0; i < kSteps * parts; ++i) {
    const int64_t size = kBatch / parts;
    losses.push_back(step([&] { return model.loss(i * size, (i + 1) * size); }).loss());
  }
  return outcome(model, losses);
}

struct Reference {
  int parts = 1;
  bool clip = false;
  at::ScalarType dtype = at::kFloat;  // the forward's autocast; float32 for none
};

/// The same in plain LibTorch: no scaler is needed where the scaled gradients are exact.
Outcome plain(const Reference& reference) {
  Model model;
  torch::optim::AdamW optimizer(model.net->parameters(), torch::optim::AdamWOptions(kLearningRate));
  std::vector<double> losses;
  const int64_t size = kBatch / reference.parts;
  for (int i = 0; i < kSteps * reference.parts; ++i) {
    if (i % reference.parts == 0) optimizer.zero_grad();
    at::Tensor loss;
    if (reference.dtype == at::kFloat) {
      loss = model.loss(i * size, (i + 1) * size);
    } else {
      const Autocast amp(at::kCPU, reference.dtype);
      loss = model.loss(i * size, (i + 1) * size);
    }
    (loss / reference.parts).backward();
    losses.push_back(loss.item<double>());
    if ((i + 1) % reference.parts != 0) continue;
    if (reference.clip) torch::nn::utils::clip_grad_norm_(model.net->parameters(), kMaxNorm);
    optimizer.step();
  }
  return outcome(model, losses);
}

struct Row {
  std::string name;
  std::function<Outcome()> ours;
  Reference reference;
  double tolerance;  // of parameters and losses; 0: bit for bit
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

using Plain = torch::optim::AdamW;

// A scale of 2^10 keeps this model's float16 gradients clear of both ends, so fp16 with a scaler equals
// fp16 without one to float16's rounding.
Precision fp16() { return Precision::fp16({.init_scale = 1024.0, .growth_interval = 1'000}); }

std::vector<Row> rows() {
  const auto batches = [](int n) { return Accumulate::batches(n); };
  return {
      {"autocast_alone",
       [] { return with_step<Plain>({.precision = Precision::bf16()}, 1); },
       {.dtype = at::kBFloat16},
       0},
      {"autocast_accumulation",
       [=] {
         return with_step<Plain>({.precision = Precision::bf16(), .accumulate = batches(4)}, 4);
       },
       {.parts = 4, .dtype = at::kBFloat16},
       0},
      {"autocast_clipping",
       [] {
         return with_step<Plain>({.precision = Precision::bf16(), .clip = clip::norm(kMaxNorm)}, 1);
       },
       {.clip = true, .dtype = at::kBFloat16},
       2e-2},
      {"autocast_fused_optimizer",
       [] { return with_step<FusedAdamW>({.precision = Precision::bf16()}, 1); },
       {.dtype = at::kBFloat16},
       2e-2},
      {"scaler_alone",
       [] { return with_step<Plain>({.precision = fp16()}, 1); },
       {.dtype = at::kHalf},
       1e-2},
      {"scaler_accumulation",
       [=] { return with_step<Plain>({.precision = fp16(), .accumulate = batches(2)}, 2); },
       {.parts = 2, .dtype = at::kHalf},
       1e-2},
      {"scaler_clipping",
       [] { return with_step<Plain>({.precision = fp16(), .clip = clip::norm(kMaxNorm)}, 1); },
       {.clip = true, .dtype = at::kHalf},
       1e-2},
      {"scaler_fused_optimizer",
       [] { return with_step<FusedAdamW>({.precision = fp16()}, 1); },
       {.dtype = at::kHalf},
       1e-2},
      {"accumulation_alone",
       [=] { return with_step<Plain>({.accumulate = batches(2)}, 2); },
       {.parts = 2},
       0},
      {"accumulation_clipping",
       [=] {
         return with_step<Plain>({.accumulate = batches(4), .clip = clip::norm(kMaxNorm)}, 4);
       },
       {.parts = 4, .clip = true},
       1e-5},
      {"accumulation_fused_optimizer",
       [=] { return with_step<FusedAdamW>({.accumulate = batches(4)}, 4); },
       {.parts = 4},
       1e-5},
      {"clipping_alone",
       [] { return with_step<Plain>({.clip = clip::norm(kMaxNorm)}, 1); },
       {.clip = true},
       1e-5},
      {"clipping_fused_optimizer",
       [] { return with_step<FusedAdamW>({.clip = clip::norm(kMaxNorm)}, 1); },
       {.clip = true},
       1e-5},
  };
}

class Matrix : public ::testing::TestWithParam<Row> {};

TEST_P(Matrix, EqualsTheReference) {
  const auto& row = GetParam();
  const auto ours = row.ours();
  const auto reference = plain(row.reference);
  ASSERT_EQ(ours.losses.size(), reference.losses.size());
  for (size_t i = 0; i < ours.losses.size(); ++i) {
    EXPECT_NEAR(ours.losses[i], reference.losses[i], row.tolerance) << "step " << i;
  }
  const auto worst = (ours.parameters - reference.parameters).abs().max().item<double>();
  EXPECT_LE(worst, row.tolerance);
}

INSTANTIATE_TEST_SUITE_P(Pairs, Matrix, ::testing::ValuesIn(rows()),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace torchlore
