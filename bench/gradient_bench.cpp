// The fused gradient pass beside LibTorch's own functions, on the same gradients.
//
// Run with --benchmark_enable_random_interleaving=true --benchmark_repetitions=9 and compare medians:
// absolute times only describe the machine.
#include <ATen/Functions.h>
#include <benchmark/benchmark.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <vector>

#include "torchlore/core/gradient_pass.hpp"
#include "torchlore/gradient/clip.hpp"
#include "torchlore/gradient/clip_grad.hpp"
#include "torchlore/gradient/spike_guard.hpp"

namespace {

/// `count` parameters of `elements` float32 each, with gradients.
std::vector<at::Tensor> parameters(int64_t count, int64_t elements) {
  std::vector<at::Tensor> result;
  for (int64_t i = 0; i < count; ++i) {
    auto p = at::empty({elements}).requires_grad_();
    p.mutable_grad() = at::randn({elements});
    result.push_back(p);
  }
  return result;
}

/// Every call must write, and the gradients must not vanish: it halves them and doubles them in turn.
void clip_torchlore(benchmark::State& state) {
  const auto p = parameters(state.range(0), state.range(1));
  const at::Tensor divisors[] = {at::full({}, 2.0), at::full({}, 0.5)};
  size_t i = 0;
  for (auto _ : state) torchlore::clip_grad_norm_(p, 1e30, {.divisor = divisors[i++ % 2]});
}

/// LibTorch multiplies by the clamped coefficient, also where it is 1.
void clip_libtorch(benchmark::State& state) {
  const auto p = parameters(state.range(0), state.range(1));
  for (auto _ : state) torch::nn::utils::clip_grad_norm_(p, 1e30);
}

/// What the pass cannot do without: one read reduction and one in-place multiplication.
void bare_traffic(benchmark::State& state) {
  const auto p = parameters(state.range(0), state.range(1));
  for (auto _ : state) {
    for (const auto& t : p) benchmark::DoNotOptimize(at::linalg_vector_norm(t.grad()));
    for (const auto& t : p) t.grad().mul_(0.999);
  }
}

void stats_only(benchmark::State& state) {
  const auto grads = torchlore::gradients(parameters(state.range(0), state.range(1)));
  for (auto _ : state) benchmark::DoNotOptimize(torchlore::gradient_stats(grads));
}

/// One way to clip, on gradients that change from call to call. The baseline is clip::norm.
void clip_by(benchmark::State& state, torchlore::Clip clip) {
  const auto p = parameters(state.range(0), state.range(1));
  const at::Tensor divisors[] = {at::full({}, 2.0), at::full({}, 0.5)};
  size_t i = 0;
  for (auto _ : state) clip.clip_(p, {.divisor = divisors[i++ % 2]});
}

/// What a spike guard adds to a step on good losses.
void observe_spikes(benchmark::State& state) {
  auto p = parameters(state.range(0), state.range(1));
  torch::optim::AdamW optimizer(p);
  torchlore::SpikeGuard guard(optimizer, {.snapshot_every = 0});
  const at::Tensor losses[] = {at::full({}, 1.0), at::full({}, 1.1)};
  size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(guard.observe(losses[i++ % 2], losses[0]));
}

/// A snapshot in every step: parameters and the moments of AdamW. The baseline copies the same.
void take_snapshot(benchmark::State& state) {
  auto p = parameters(state.range(0), state.range(1));
  torch::optim::AdamW optimizer(p);
  optimizer.step();
  torchlore::SpikeGuard guard(optimizer, {.snapshot_every = 1});
  const auto loss = at::full({}, 1.0);
  for (auto _ : state) guard.observe(loss);
}

void copy_three_times(benchmark::State& state) {
  const at::NoGradGuard no_grad;
  const auto p = parameters(state.range(0), state.range(1));
  std::vector<at::Tensor> copies[3];
  for (auto& copy : copies) {
    for (const auto& t : p) copy.push_back(at::empty_like(t));
  }
  for (auto _ : state) {
    for (auto& copy : copies) {
      for (size_t i = 0; i < p.size(); ++i) copy[i].copy_(p[i]);
    }
  }
}

void sizes(benchmark::internal::Benchmark* b) {
  b->Args({100, 250'000})->Args({1'000, 25'000})->Args({2'000, 1'000})->Args({6, 5'000});
  b->Unit(benchmark::kMicrosecond)->UseRealTime();
}

BENCHMARK(clip_torchlore)->Apply(sizes);
BENCHMARK(clip_libtorch)->Apply(sizes);
BENCHMARK(bare_traffic)->Apply(sizes);
BENCHMARK(stats_only)->Apply(sizes);
BENCHMARK_CAPTURE(clip_by, norm, torchlore::clip::norm(1e30))->Apply(sizes);
BENCHMARK_CAPTURE(clip_by, autoclip, torchlore::clip::autoclip(100))->Apply(sizes);
BENCHMARK_CAPTURE(clip_by, zclip, torchlore::clip::zclip())->Apply(sizes);
BENCHMARK_CAPTURE(clip_by, agc, torchlore::clip::agc({.clipping = 1e30}))->Apply(sizes);
BENCHMARK(observe_spikes)->Apply(sizes);
BENCHMARK(take_snapshot)->Apply(sizes);
BENCHMARK(copy_three_times)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
