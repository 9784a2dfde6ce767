// A TrainingStep beside the bare LibTorch loop, on a model so small that the loop's own cost shows.
#include <ATen/Functions.h>
#include <benchmark/benchmark.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/sgd.h>

#include "torchlore/optimizer/fused_sgd.hpp"
#include "torchlore/step.hpp"

namespace {

/// 784-64-10 with a batch of 32.
template <typename Optimizer>
struct Job {
  torch::nn::Sequential model{torch::nn::Linear(784, 64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 10)};
  Optimizer optimizer{model->parameters(), torch::optim::SGDOptions(0.01)};
  at::Tensor x = at::randn({32, 784});
  at::Tensor y = at::randint(10, {32}, at::kLong);
  at::Tensor loss() { return torch::nn::functional::cross_entropy(model->forward(x), y); }
};

void bare_loop(benchmark::State& state) {
  Job<torch::optim::SGD> job;
  for (auto _ : state) {
    job.optimizer.zero_grad();
    job.loss().backward();
    job.optimizer.step();
  }
}

void bare_loop_clipped(benchmark::State& state) {
  Job<torch::optim::SGD> job;
  for (auto _ : state) {
    job.optimizer.zero_grad();
    job.loss().backward();
    torch::nn::utils::clip_grad_norm_(job.model->parameters(), 1.0);
    job.optimizer.step();
  }
}

template <typename Optimizer>
void training_step(benchmark::State& state, const torchlore::TrainingStepOptions& options) {
  Job<Optimizer> job;
  torchlore::TrainingStep step(job.optimizer, options);
  for (auto _ : state) step([&] { return job.loss(); });
}

using torchlore::TrainingStepOptions;

void step_sgd(benchmark::State& state, const TrainingStepOptions& options) {
  training_step<torch::optim::SGD>(state, options);
}

void step_fused_sgd(benchmark::State& state, const TrainingStepOptions& options) {
  training_step<torchlore::FusedSGD>(state, options);
}

BENCHMARK(bare_loop);
BENCHMARK_CAPTURE(step_sgd, plain, TrainingStepOptions{});
BENCHMARK_CAPTURE(step_fused_sgd, plain, TrainingStepOptions{});
BENCHMARK(bare_loop_clipped);
BENCHMARK_CAPTURE(step_sgd, clipped, TrainingStepOptions{.clip = torchlore::clip::norm(1.0)});
BENCHMARK_CAPTURE(step_fused_sgd, clipped, TrainingStepOptions{.clip = torchlore::clip::norm(1.0)});

}  // namespace

BENCHMARK_MAIN();
