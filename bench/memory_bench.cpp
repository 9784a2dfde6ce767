// What memory/ costs: an allocation that is counted against one that is not, and a checkpointed block
// against the block run twice, and a pass that is retried or may be split against a plain one.
//
//   memory_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
#include <ATen/Functions.h>
#include <benchmark/benchmark.h>
#include <c10/core/CPUAllocator.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/memory/memory_meter.hpp"
#include "torchlore/memory/retry.hpp"
#include "torchlore/memory/run_or_split.hpp"

namespace {

namespace nn = torch::nn;

// --- Allocations of state.range(0) bytes ---------------------------------------------------------

void allocate(benchmark::State& state, c10::Allocator& allocator) {
  const auto bytes = static_cast<size_t>(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(allocator.allocate(bytes));
}

void libtorchs_allocator(benchmark::State& state) {
  allocate(state, *c10::GetDefaultCPUAllocator());
}
BENCHMARK(libtorchs_allocator)->Arg(64)->Arg(65'536)->ThreadRange(1, 2);

void counted_allocator(benchmark::State& state) {
  const torchlore::MemoryMeter meter;
  allocate(state, *c10::GetCPUAllocator());
}
BENCHMARK(counted_allocator)->Arg(64)->Arg(65'536)->ThreadRange(1, 2);

// --- A tiny block: two linear layers, width 8, batch 4 -------------------------------------------

struct Tiny {
  nn::Sequential block{nn::Linear(8, 8), nn::GELU(), nn::Linear(8, 8)};
  at::Tensor x = at::randn({4, 8}).set_requires_grad(true);
};

/// The work that checkpointing cannot avoid: two forward passes and a backward pass.
void plain_block_with_two_forwards(benchmark::State& state) {
  Tiny tiny;
  for (auto _ : state) {
    tiny.block->forward(tiny.x);
    tiny.block->forward(tiny.x).sum().backward();
  }
}
BENCHMARK(plain_block_with_two_forwards);

void checkpointed_block(benchmark::State& state) {
  Tiny tiny;
  for (auto _ : state) torchlore::checkpoint(tiny.block, tiny.x).sum().backward();
}
BENCHMARK(checkpointed_block);

void checkpointed_lambda(benchmark::State& state) {
  Tiny tiny;
  for (auto _ : state) {
    torchlore::checkpoint(
        [block = tiny.block](const at::Tensor& x) mutable { return block->forward(x); }, tiny.x)
        .sum()
        .backward();
  }
}
BENCHMARK(checkpointed_lambda);

// --- Forward and backward of a small net: two linear layers, width 64, batch 32 -------------------

struct Small {
  nn::Sequential net{nn::Linear(64, 64), nn::GELU(), nn::Linear(64, 64)};
  at::Tensor x = at::randn({32, 64});

  at::Tensor loss(const at::Tensor& part) { return net->forward(part).square().mean(); }
  void clear() { net->zero_grad(); }
};

void plain_pass(benchmark::State& state) {
  Small small;
  for (auto _ : state) {
    small.clear();
    small.loss(small.x).backward();
  }
}
BENCHMARK(plain_pass);

void retried_pass(benchmark::State& state) {
  Small small;
  const torchlore::RetryOptions options{.model = &*small.net};
  for (auto _ : state) {
    small.clear();
    torchlore::retry([&] { small.loss(small.x).backward(); }, options);
  }
}
BENCHMARK(retried_pass);

void splitter_pass(benchmark::State& state) {
  Small small;
  torchlore::BatchSplitter splitter;
  for (auto _ : state) {
    small.clear();
    splitter(small.x, [&](const at::Tensor& part) { return small.loss(part); });
  }
}
BENCHMARK(splitter_pass);

}  // namespace

BENCHMARK_MAIN();
