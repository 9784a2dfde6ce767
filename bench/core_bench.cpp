// What core/ costs beside LibTorch's own: tensor files against torch::save and torch::load, keyed
// random numbers against LibTorch's generator.
//
//   core_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
//
// Each measures both sides in turn; `ratio` is the median of ours over theirs, so below 1 is faster.
#include <ATen/Functions.h>
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <torch/serialize.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "torchlore/core/philox.hpp"
#include "torchlore/core/tensor_file.hpp"

namespace {

namespace tl = torchlore;
using Clock = std::chrono::steady_clock;

template <typename F>
double seconds(F&& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Runs both in turn, the first one alternating, and reports our time and the ratio.
template <typename Ours, typename Theirs>
void compare(benchmark::State& state, Ours&& ours, Theirs&& theirs) {
  std::vector<double> ratios;
  for (auto _ : state) {
    double our_time = 0, their_time = 0;
    if (ratios.size() % 2 == 0) our_time = seconds(ours);
    their_time = seconds(theirs);
    if (our_time == 0) our_time = seconds(ours);
    state.SetIterationTime(our_time);
    ratios.push_back(our_time / their_time);
  }
  const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
  std::nth_element(ratios.begin(), middle, ratios.end());
  state.counters["ratio"] = *middle;
}

// --- Tensor files: 25 tensors of 4 MB ------------------------------------------------------------

struct Files {
  Files() {
    std::filesystem::create_directories(folder);
    for (int64_t i = 0; i < 25; ++i) tensors[std::to_string(i)] = at::rand({1'000, 1'000});
    for (const auto& [name, tensor] : tensors) list.push_back(tensor);
  }
  ~Files() { std::filesystem::remove_all(folder); }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;

  /// torch::save, made as durable as write_tensors if asked for.
  void save(bool durable) const {
    torch::save(list, theirs);
    if (!durable) return;
    const int file = ::open(theirs.c_str(), O_RDONLY);
    ::fsync(file);
    ::close(file);
  }

  std::filesystem::path folder = std::filesystem::temp_directory_path() / "torchlore_core_bench";
  std::string ours = folder / "ours.safetensors", theirs = folder / "theirs.pt";
  tl::StateDict tensors;
  std::vector<at::Tensor> list;
};

void write_file(benchmark::State& state) {
  const Files files;
  compare(
      state, [&] { tl::write_tensors(files.ours, files.tensors); },
      [&] { files.save(state.range(0) != 0); });
}
// 0: against torch::save alone, which leaves the data in the system's cache; 1: flushed to the disk.
BENCHMARK(write_file)->ArgName("flushed")->Arg(0)->Arg(1)->UseManualTime()->Iterations(3);

void read_file(benchmark::State& state) {
  const Files files;
  tl::write_tensors(files.ours, files.tensors);
  files.save(true);
  const bool touch = state.range(0) != 0;
  compare(
      state,
      [&] {
        for (const auto& [name, tensor] : tl::TensorFile::open(files.ours).tensors()) {
          if (touch) benchmark::DoNotOptimize(tensor.sum());
        }
      },
      [&] {
        std::vector<at::Tensor> loaded;
        torch::load(loaded, files.theirs);
        for (const auto& tensor : loaded) {
          if (touch) benchmark::DoNotOptimize(tensor.sum());
        }
      });
}
// 0: the tensors are only there; 1: every element is read.
BENCHMARK(read_file)->ArgName("touched")->Arg(0)->Arg(1)->UseManualTime()->Iterations(5);

// --- Random numbers: 1 M elements ----------------------------------------------------------------

void normal_fill(benchmark::State& state) {
  const auto ours = at::empty({1'000'000}), theirs = at::empty({1'000'000});
  const tl::PhiloxStream stream(1);
  compare(
      state, [&] { tl::philox_normal_(ours, stream); }, [&] { theirs.normal_(); });
}
BENCHMARK(normal_fill)->UseManualTime();

void uniform_fill(benchmark::State& state) {
  const auto ours = at::empty({1'000'000}), theirs = at::empty({1'000'000});
  const tl::PhiloxStream stream(1);
  compare(
      state, [&] { tl::philox_uniform_(ours, stream); }, [&] { theirs.uniform_(); });
}
BENCHMARK(uniform_fill)->UseManualTime();

void permutation(benchmark::State& state) {
  int64_t epoch = 0;
  compare(
      state, [&] { benchmark::DoNotOptimize(tl::philox_permutation(1, ++epoch, 1'000'000)); },
      [&] { benchmark::DoNotOptimize(at::randperm(1'000'000)); });
}
BENCHMARK(permutation)->UseManualTime();

}  // namespace

BENCHMARK_MAIN();
