// Draws of privacy noise, one million at a time, beside LibTorch's own normal numbers.
//
//   noise_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include "torchlore/privacy/discrete_noise.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"
#include "torchlore/privacy/mechanisms.hpp"

namespace {

namespace tl = torchlore;

constexpr int64_t kDraws = 1 << 20;

void count(benchmark::State& state) { state.SetItemsProcessed(state.iterations() * kDraws); }

void add_libtorch_normal(benchmark::State& state) {
  at::set_num_threads(1);
  auto values = at::zeros({kDraws});
  for (auto _ : state) values.add_(at::randn_like(values), 2.0);
  count(state);
}
BENCHMARK(add_libtorch_normal);

void add_noise(benchmark::State& state, const tl::NoiseSource& source) {
  at::set_num_threads(1);
  const auto values = at::zeros({kDraws});
  for (auto _ : state) tl::add_gaussian_noise_({values}, 2.0, source);
  count(state);
}
BENCHMARK_CAPTURE(add_noise, fast_not_secure, tl::NoiseSource::fast_not_secure(1));
BENCHMARK_CAPTURE(add_noise, secure, tl::NoiseSource::secure());

/// The argument is sigma: below 4 the plain sampler draws.
void discrete_gaussian(benchmark::State& state) {
  at::set_num_threads(1);
  const auto sigma = static_cast<double>(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(tl::discrete_gaussian({kDraws}, sigma));
  count(state);
}
BENCHMARK(discrete_gaussian)
    ->Arg(3)
    ->Arg(1'000)
    ->Arg(int64_t{1} << 42)
    ->Unit(benchmark::kMillisecond);

void laplace_mechanism(benchmark::State& state) {
  at::set_num_threads(1);
  const auto values = at::zeros({kDraws});
  for (auto _ : state) {
    benchmark::DoNotOptimize(tl::laplace_mechanism(values, {.l1_sensitivity = 1, .epsilon = 1}));
  }
  count(state);
}
BENCHMARK(laplace_mechanism)->Unit(benchmark::kMillisecond);

/// A step's worth of small tensors: the call's fixed cost.
void add_noise_to_ten(benchmark::State& state) {
  const auto values = at::zeros({10});
  for (auto _ : state) tl::add_gaussian_noise_({values}, 2.0);
}
BENCHMARK(add_noise_to_ten);

}  // namespace

BENCHMARK_MAIN();
