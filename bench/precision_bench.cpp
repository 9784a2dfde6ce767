// What precision/ costs: an autocast scope, and a step with a loss scaler against one without.
//
//   precision_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <benchmark/benchmark.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/sgd.h>

#include <vector>

#include "torchlore/gradient/clip_grad.hpp"
#include "torchlore/precision/autocast.hpp"
#include "torchlore/precision/loss_scaler.hpp"

namespace {

namespace tl = torchlore;

// --- Autocast ------------------------------------------------------------------------------------

void scope_by_hand(benchmark::State& state) {
  namespace lt = at::autocast;
  for (auto _ : state) {
    const bool enabled = lt::is_autocast_enabled(at::kCPU);
    const auto dtype = lt::get_autocast_dtype(at::kCPU);
    const bool cache = lt::is_autocast_cache_enabled();
    lt::set_autocast_enabled(at::kCPU, true);
    lt::set_autocast_dtype(at::kCPU, at::kBFloat16);
    lt::set_autocast_cache_enabled(true);
    lt::increment_nesting();
    benchmark::ClobberMemory();
    if (lt::decrement_nesting() == 0) lt::clear_cache();
    lt::set_autocast_enabled(at::kCPU, enabled);
    lt::set_autocast_dtype(at::kCPU, dtype);
    lt::set_autocast_cache_enabled(cache);
  }
}
BENCHMARK(scope_by_hand);

void scope(benchmark::State& state) {
  for (auto _ : state) {
    const tl::Autocast amp(at::kCPU, at::kBFloat16);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(scope);

// --- A whole step of a tiny model, 784-64-10, batch 32
// --------------------------------------------

struct Tiny {
  at::Tensor loss() { return at::cross_entropy_loss(model->forward(x), y); }

  torch::nn::Sequential model{torch::nn::Linear(784, 64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 10)};
  torch::optim::SGD optimizer{model->parameters(), torch::optim::SGDOptions(1e-3)};
  at::Tensor x = at::rand({32, 784});
  at::Tensor y = at::randint(10, {32}, at::kLong);
};

void plain_step(benchmark::State& state) {
  Tiny tiny;
  for (auto _ : state) {
    tiny.optimizer.zero_grad();
    tiny.loss().backward();
    tiny.optimizer.step();
  }
}
BENCHMARK(plain_step);

void scaled_step(benchmark::State& state) {
  Tiny tiny;
  tl::LossScaler scaler;
  for (auto _ : state) {
    tiny.optimizer.zero_grad();
    scaler.scale(tiny.loss()).backward();
    scaler.step(tiny.optimizer);
    scaler.update();
  }
}
BENCHMARK(scaled_step);

void plain_clipped_step(benchmark::State& state) {
  Tiny tiny;
  for (auto _ : state) {
    tiny.optimizer.zero_grad();
    tiny.loss().backward();
    torch::nn::utils::clip_grad_norm_(tiny.model->parameters(), 1.0);
    tiny.optimizer.step();
  }
}
BENCHMARK(plain_clipped_step);

void scaled_clipped_step(benchmark::State& state) {
  Tiny tiny;
  tl::LossScaler scaler;
  for (auto _ : state) {
    tiny.optimizer.zero_grad();
    scaler.scale(tiny.loss()).backward();
    scaler.step_clipped(tiny.optimizer, 1.0);
    scaler.update();
  }
}
BENCHMARK(scaled_clipped_step);

// --- Unscaling and clipping alone, 100 tensors of state.range(0) float32
// --------------------------

struct Gradients {
  explicit Gradients(int64_t size) {
    for (int i = 0; i < 100; ++i) {
      auto p = at::zeros({size}).requires_grad_(true);
      p.mutable_grad() = at::rand({size});
      parameters.push_back(p);
    }
    scaler.scale(at::ones({}));
  }
  std::vector<at::Tensor> parameters;
  tl::LossScaler scaler{{.init_scale = 1.0}};
};

void unscale(benchmark::State& state) {
  Gradients g(state.range(0));
  torch::optim::SGD optimizer(g.parameters, torch::optim::SGDOptions(0));
  for (auto _ : state) {
    g.scaler.unscale_(optimizer);
    g.scaler.update();
  }
}
BENCHMARK(unscale)->Arg(1'000)->Arg(100'000);

void unscale_then_clip(benchmark::State& state) {
  Gradients g(state.range(0));
  torch::optim::SGD optimizer(g.parameters, torch::optim::SGDOptions(0));
  for (auto _ : state) {
    g.scaler.unscale_(optimizer);
    tl::clip_grad_norm_(g.parameters, 1.0);
    g.scaler.update();
  }
}
BENCHMARK(unscale_then_clip)->Arg(1'000)->Arg(100'000);

void unscale_and_clip(benchmark::State& state) {
  Gradients g(state.range(0));
  torch::optim::SGD optimizer(g.parameters, torch::optim::SGDOptions(0));
  for (auto _ : state) {
    g.scaler.unscale_and_clip_(optimizer, 1.0);
    g.scaler.update();
  }
}
BENCHMARK(unscale_and_clip)->Arg(1'000)->Arg(100'000);

}  // namespace

BENCHMARK_MAIN();
