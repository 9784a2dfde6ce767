// What memory/ costs: an allocation that is counted against one that is not, and a checkpointed block
// against the block run twice.
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

}  // namespace

BENCHMARK_MAIN();
