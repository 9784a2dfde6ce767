// Each torch::optim optimizer beside its fused namesake, and WeightAverage beside _foreach_lerp_, on the
// same shapes.
//
//   OMP_WAIT_POLICY=passive optimizer_bench            all, interleaved at random; then the ratios
//   … --benchmark_filter=AdamW/many                    one shape of one optimizer
//
// The ratio is fused time over plain time, medians of the repetitions.

#include <ATen/Functions.h>
#include <benchmark/benchmark.h>
#include <torch/nn/module.h>

#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "torchlore/optimizer/fused_adagrad.hpp"
#include "torchlore/optimizer/fused_adam.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/optimizer/fused_sgd.hpp"
#include "torchlore/optimizer/weight_average.hpp"

namespace {

using Tensors = std::vector<at::Tensor>;

Tensors parameters(const std::vector<std::vector<int64_t>>& shapes) {
  Tensors params;
  for (const auto& shape : shapes) {
    params.push_back(at::randn(shape).requires_grad_());
    params.back().mutable_grad() = at::randn(shape);
  }
  return params;
}

const std::map<std::string, std::vector<std::vector<int64_t>>>& shapes() {
  static const std::map<std::string, std::vector<std::vector<int64_t>>> all{
      {"large_100x250k", std::vector<std::vector<int64_t>>(100, {250'000})},
      {"many_2000x1k", std::vector<std::vector<int64_t>>(2000, {1'000})},
      {"mlp_784_64_10", {{64, 784}, {64}, {10, 64}, {10}}}};
  return all;
}

template <typename Optimizer, typename Options>
void step(benchmark::State& state, const std::string& shape, const Options& options) {
  const auto params = parameters(shapes().at(shape));
  Optimizer optimizer(params, options);
  optimizer.step();
  for (auto _ : state) optimizer.step();
}

template <typename Plain, typename Fused, typename Options>
void add(const std::string& name, const Options& options) {
  for (const auto& [shape, unused] : shapes()) {
    const auto what = name + "/" + shape;
    const auto tune = [](benchmark::internal::Benchmark* b) {
      b->UseRealTime()->Unit(benchmark::kMicrosecond)->MinTime(0.02)->Repetitions(9);
    };
    tune(benchmark::RegisterBenchmark(
        (what + "/plain").c_str(),
        [shape = shape, options](benchmark::State& s) { step<Plain>(s, shape, options); }));
    tune(benchmark::RegisterBenchmark(
        (what + "/fused").c_str(),
        [shape = shape, options](benchmark::State& s) { step<Fused>(s, shape, options); }));
  }
}

/// A model with parameters of a shape, and averages of it.
struct Weights : torch::nn::Module {
  explicit Weights(const std::string& shape, at::ScalarType dtype) {
    for (const auto& sizes : shapes().at(shape)) {
      const auto index = std::to_string(parameters().size());
      register_parameter("p" + index, at::randn(sizes).to(dtype));
    }
  }
};

/// The plain way: `_foreach_lerp_`, in float32 for 16-bit weights, too.
void average_plainly(benchmark::State& state, const std::string& shape, at::ScalarType dtype) {
  const Weights model(shape, dtype);
  Tensors averages, weights;
  for (const auto& p : model.parameters()) {
    averages.push_back(p.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true));
    weights.push_back(p.detach());
  }
  for (auto _ : state) {
    auto wide = weights;
    for (auto& w : wide) w = w.to(at::kFloat);
    at::_foreach_lerp_(averages, wide, 0.001);
  }
}

void average(benchmark::State& state, const std::string& shape, at::ScalarType dtype) {
  const Weights model(shape, dtype);
  auto average = torchlore::WeightAverage::ema(model);
  average.update();
  for (auto _ : state) average.update();
}

void add_averages(const std::string& name, at::ScalarType dtype) {
  for (const auto& [shape, unused] : shapes()) {
    const auto tune = [](benchmark::internal::Benchmark* b) {
      b->UseRealTime()->Unit(benchmark::kMicrosecond)->MinTime(0.02)->Repetitions(9);
    };
    const auto what = name + "/" + shape;
    tune(benchmark::RegisterBenchmark(
        (what + "/plain").c_str(),
        [shape = shape, dtype](benchmark::State& s) { average_plainly(s, shape, dtype); }));
    tune(benchmark::RegisterBenchmark(
        (what + "/fused").c_str(),
        [shape = shape, dtype](benchmark::State& s) { average(s, shape, dtype); }));
  }
}

/// Prints as usual, and remembers the medians for the ratios.
class Ratios : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (const auto& run : runs) {
      if (run.aggregate_name == "median")
        median_[run.run_name.function_name] = run.GetAdjustedRealTime();
    }
  }

  void print() const {
    for (const auto& [name, time] : median_) {
      const auto end = name.rfind("/fused");
      if (end == std::string::npos) continue;
      const auto plain = median_.find(name.substr(0, end) + "/plain");
      if (plain == median_.end()) continue;
      std::printf("%-32s fused / plain = %.2f\n", name.substr(0, end).c_str(),
                  time / plain->second);
    }
  }

 private:
  std::map<std::string, double> median_;
};

}  // namespace

int main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  char interleave[] = "--benchmark_enable_random_interleaving=true";
  char brief[] = "--benchmark_report_aggregates_only=true";
  arguments.insert(arguments.begin() + 1, {interleave, brief});
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());

  using namespace torch::optim;
  add<AdamW, torchlore::FusedAdamW>("AdamW", AdamWOptions(1e-4));
  add<Adam, torchlore::FusedAdam>("Adam", AdamOptions(1e-4));
  add<SGD, torchlore::FusedSGD>("SGD", SGDOptions(1e-4).momentum(0.9));
  add<Adagrad, torchlore::FusedAdagrad>("Adagrad", AdagradOptions(1e-4));
  add_averages("WeightAverage", at::kFloat);
  add_averages("WeightAverageBF16", at::kBFloat16);
  Ratios ratios;
  benchmark::RunSpecifiedBenchmarks(&ratios);
  ratios.print();
}
