// What ActivationBudget costs per op: recorded under a budget that is never reached, against plain.
//
//   activation_budget_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <benchmark/benchmark.h>

#include <optional>

#include "torchlore/memory/activation_budget.hpp"

namespace {

constexpr int kOps = 500;

/// Runs `op` on tiny tensors many times in one graph; the graph's end is part of the cost.
template <typename Op>
void chain(benchmark::State& state, const Op& op) {
  at::set_num_threads(1);
  const auto w = at::randn({4, 4}).requires_grad_();
  const auto t = at::randn({4, 4});
  for (auto _ : state) {
    std::optional<torchlore::ActivationBudget> budget;
    if (state.range(0) != 0) budget.emplace(torchlore::GiB(64));
    auto h = w * 1;
    for (int i = 0; i < kOps; ++i) op(h, t);
    benchmark::DoNotOptimize(h);
  }
  state.SetItemsProcessed(state.iterations() * kOps);
}

void sigmoid(benchmark::State& state) {
  chain(state, [](at::Tensor& h, const at::Tensor&) { h = h.sigmoid(); });
}
void multiply(benchmark::State& state) {
  chain(state, [](at::Tensor& h, const at::Tensor& t) { h = h * t; });
}
void add(benchmark::State& state) {
  chain(state, [](at::Tensor& h, const at::Tensor& t) { h = h + t; });
}
void in_place(benchmark::State& state) {
  chain(state, [](at::Tensor& h, const at::Tensor&) { h.relu_(); });
}
void view(benchmark::State& state) {
  chain(state, [](at::Tensor& h, const at::Tensor&) { benchmark::DoNotOptimize(h.t()); });
}
void matrix_product(benchmark::State& state) {
  chain(state, [](at::Tensor& h, const at::Tensor& t) { h = t.mm(h); });
}

}  // namespace

BENCHMARK(sigmoid)->ArgName("budget")->Arg(0)->Arg(1);
BENCHMARK(multiply)->ArgName("budget")->Arg(0)->Arg(1);
BENCHMARK(add)->ArgName("budget")->Arg(0)->Arg(1);
BENCHMARK(in_place)->ArgName("budget")->Arg(0)->Arg(1);
BENCHMARK(view)->ArgName("budget")->Arg(0)->Arg(1);
BENCHMARK(matrix_product)->ArgName("budget")->Arg(0)->Arg(1);
BENCHMARK_MAIN();
