// What an OpMode costs per op, on ops so small that nothing else shows, and a ParameterIndex.
//
//   intercept_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <benchmark/benchmark.h>

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/parameter_index.hpp"

namespace {

namespace tl = torchlore;

struct CountAddmm : tl::OpHandler {
  int64_t count = 0;
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    ++count;
    return OpHandler::addmm(bias, a, b, beta, alpha);
  }
};

/// Overrides an op that is not called.
struct CountBmm : tl::OpHandler {
  int64_t count = 0;
  at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) override {
    ++count;
    return OpHandler::bmm(a, b);
  }
};

struct CountAll : tl::OpHandler {
  int64_t count = 0;
  void boxed(tl::OpCall& call) override {
    ++count;
    call.run();
  }
};

struct Nothing {};

/// Runs the op inside a mode with a handler of this type; `Nothing`: without one.
template <typename Handler, typename Op>
void measure(benchmark::State& state, const Op& op) {
  const at::NoGradGuard no_grad;
  Handler handler;
  if constexpr (std::is_same_v<Handler, Nothing>) {
    for (auto _ : state) op();
  } else {
    const tl::OpMode mode(handler);
    for (auto _ : state) op();
  }
}

template <typename Handler>
void addmm(benchmark::State& state) {
  const auto bias = at::randn({1}), x = at::randn({1, 1}), w = at::randn({1, 1});
  measure<Handler>(state, [&] { at::addmm(bias, x, w); });
}
BENCHMARK(addmm<Nothing>)->Name("addmm/plain");
BENCHMARK(addmm<tl::OpHandler>)->Name("addmm/mode_without_overrides");
BENCHMARK(addmm<CountBmm>)->Name("addmm/another_op_observed");
BENCHMARK(addmm<CountAddmm>)->Name("addmm/observed");
BENCHMARK(addmm<CountAll>)->Name("addmm/boxed");

template <typename Handler>
void add(benchmark::State& state) {
  const auto x = at::zeros({1}), one = at::ones({1});
  measure<Handler>(state, [&] { x.add_(one); });
}
BENCHMARK(add<Nothing>)->Name("add_/plain");
BENCHMARK(add<CountAddmm>)->Name("add_/another_op_observed");
BENCHMARK(add<CountAll>)->Name("add_/boxed");

template <typename Handler>
void transpose(benchmark::State& state) {
  const auto x = at::zeros({1, 1});
  measure<Handler>(state, [&] { benchmark::DoNotOptimize(x.t()); });
}
BENCHMARK(transpose<Nothing>)->Name("t/plain");
BENCHMARK(transpose<CountAddmm>)->Name("t/another_op_observed");
BENCHMARK(transpose<CountAll>)->Name("t/boxed");

// --- ParameterIndex: what a handler pays to know the parameter of an argument -------------------

void find(benchmark::State& state, const at::Tensor& argument,
          const std::vector<std::pair<std::string, at::Tensor>>& named) {
  const tl::ParameterIndex index(named);
  for (auto _ : state) benchmark::DoNotOptimize(index.find(argument));
}

std::vector<std::pair<std::string, at::Tensor>> parameters() {
  std::vector<std::pair<std::string, at::Tensor>> named;
  for (int i = 0; i < 100; ++i) {
    named.emplace_back("layer" + std::to_string(i), at::randn({16, 16}).requires_grad_(true));
  }
  return named;
}

void find_parameter(benchmark::State& state) {
  const auto named = parameters();
  find(state, named[50].second.t(), named);
}
BENCHMARK(find_parameter);

void find_part(benchmark::State& state) {
  const auto named = parameters();
  find(state, named[50].second.narrow(1, 2, 8), named);
}
BENCHMARK(find_part);

void find_copy(benchmark::State& state) {
  const auto named = parameters();
  find(state, named[50].second.t().to(at::kBFloat16), named);
}
BENCHMARK(find_copy);

void find_no_parameter(benchmark::State& state) {
  const auto named = parameters();
  find(state, named[50].second * 2, named);
}
BENCHMARK(find_no_parameter);

/// A scope that is entered and left.
void scope(benchmark::State& state) {
  CountAddmm handler;
  for (auto _ : state) {
    const tl::OpMode mode(handler);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(scope);

}  // namespace

BENCHMARK_MAIN();
