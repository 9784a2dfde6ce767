// What sparse attention costs beside LibTorch's dense attention: forward and backward by density, and each
// instruction set.
//
//   attention_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <benchmark/benchmark.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <vector>

#include "../src/attention/kernels/attention_kernels.hpp"
#include "../src/core/buffer_pool.hpp"
#include "../src/core/kernels/element_of.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace {

namespace tl = torchlore;

constexpr int64_t kLength = 2048;
constexpr int64_t kHeads = 8;
constexpr int64_t kDim = 64;

at::Tensor numbers(at::ScalarType dtype) {
  return at::randn({1, kHeads, kLength, kDim}, dtype).requires_grad_();
}

struct Inputs {
  explicit Inputs(at::ScalarType dtype)
      : q(numbers(dtype)), k(numbers(dtype)), v(numbers(dtype)), g(at::randn_like(q)) {}
  at::Tensor q, k, v, g;
};

at::ScalarType dtype_of(const benchmark::State& state) {
  return state.range(0) != 0 ? at::kBFloat16 : at::kFloat;
}

/// Random blocks with a share of `percent`.
tl::BlockLayout layout_of(int64_t percent) {
  return tl::BlockLayout::build(
      tl::mask::random_blocks(std::max<int64_t>(1, kLength / 64 * percent / 100), 5), kLength,
      kLength);
}

at::Tensor sparse(const Inputs& in, const tl::BlockLayout& layout) {
  return tl::sparse_attention(in.q, in.k, in.v, layout, {.allow_dense = false});
}

at::Tensor dense(const Inputs& in) { return at::scaled_dot_product_attention(in.q, in.k, in.v); }

void dense_forward(benchmark::State& state) {
  const at::NoGradGuard no_grad;
  const Inputs in(dtype_of(state));
  for (auto _ : state) benchmark::DoNotOptimize(dense(in));
}
BENCHMARK(dense_forward)->ArgName("bf16")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void sparse_forward(benchmark::State& state) {
  const at::NoGradGuard no_grad;
  const Inputs in(dtype_of(state));
  const auto layout = layout_of(state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(sparse(in, layout));
}
BENCHMARK(sparse_forward)
    ->ArgNames({"bf16", "percent"})
    ->ArgsProduct({{0, 1}, {5, 25, 100}})
    ->Unit(benchmark::kMillisecond);

void run_backward(benchmark::State& state, const Inputs& in, const at::Tensor& out) {
  for (auto _ : state)
    torch::autograd::grad({out}, {in.q, in.k, in.v}, {in.g}, /*retain_graph=*/true);
}

void dense_backward(benchmark::State& state) {
  const Inputs in(dtype_of(state));
  run_backward(state, in, dense(in));
}
BENCHMARK(dense_backward)->ArgName("bf16")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void sparse_backward(benchmark::State& state) {
  const Inputs in(dtype_of(state));
  run_backward(state, in, sparse(in, layout_of(state.range(1))));
}
BENCHMARK(sparse_backward)
    ->ArgNames({"bf16", "percent"})
    ->ArgsProduct({{0, 1}, {5, 25, 100}})
    ->Unit(benchmark::kMillisecond);

// --- The loops of each instruction set, dense, forward: GFLOP/s
// --------------------------------------------

tl::kernels::Rows rows_of(const at::Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

void forced_set(benchmark::State& state, const char* name) {
  const auto* kernels = tl::kernels::block_kernels(name);
  if (kernels == nullptr) {
    state.SkipWithError("this machine lacks the instruction set");
    return;
  }
  const at::NoGradGuard no_grad;
  const Inputs in(dtype_of(state));
  const auto layout = layout_of(100);
  const std::vector<const tl::TileLayout*> tiles(kHeads, &layout.pattern(0, 0));
  auto out = at::empty_like(in.q), sums = at::empty({1, kHeads, kLength}, at::kFloat);
  tl::detail::BufferPool scratch(1 << 24);
  const tl::kernels::AttentionProblem problem{
      .element = tl::kernels::element_of(in.q.scalar_type()),
      .heads = kHeads,
      .key_heads = kHeads,
      .queries = kLength,
      .keys = kLength,
      .head_dim = kDim,
      .value_dim = kDim,
      .q = rows_of(in.q),
      .k = rows_of(in.k),
      .v = rows_of(in.v),
      .layouts = tiles.data(),
      .scale = 0.125};
  for (auto _ : state) {
    tl::kernels::attention_forward(problem, rows_of(out), sums.mutable_data_ptr(), scratch, nullptr,
                                   kernels);
  }
  state.counters["flops"] = benchmark::Counter(4.0 * kLength * kLength * kDim * kHeads,
                                               benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK_CAPTURE(forced_set, portable, "portable")
    ->ArgName("bf16")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(forced_set, avx2, "avx2")
    ->ArgName("bf16")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(forced_set, avx512, "avx512")
    ->ArgName("bf16")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(forced_set, avx512bf16, "avx512bf16")
    ->ArgName("bf16")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
