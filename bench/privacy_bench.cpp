// Privacy accountants; per-example gradients of single layers beside LibTorch's way for the whole batch.
#include <ATen/Functions.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <tuple>

#include "../src/core/buffer_pool.hpp"
#include "../src/privacy/kernels/convolution.hpp"
#include "../src/privacy/kernels/linear.hpp"
#include "../src/privacy/kernels/weighted_sum.hpp"
#include "torchlore/privacy/pld.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace {

using torchlore::kernels::PerExample;

const torchlore::PrivacyLedger& usual_run() {
  static const torchlore::PrivacyLedger ledger({{1.5, 0.04, 2250}});
  return ledger;
}

void rdp(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(torchlore::rdp_epsilon(usual_run(), 1e-5).value);
}
BENCHMARK(rdp)->Unit(benchmark::kMillisecond);

/// The argument is the error in thousandths of ε.
void prv(benchmark::State& state) {
  const double error = 1e-3 * static_cast<double>(state.range(0));
  for (auto _ : state) {
    const auto bounds = torchlore::prv_epsilon(usual_run(), 1e-5, {.epsilon_error = error});
    benchmark::DoNotOptimize(bounds.upper);
  }
}
BENCHMARK(prv)->Arg(100)->Arg(10)->Unit(benchmark::kMillisecond);

void pld(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(torchlore::pld_epsilon(usual_run(), 1e-5));
}
BENCHMARK(pld)->Unit(benchmark::kMillisecond);

/// A linear layer over [T, B, in] -> [T, B, out], as a transformer's. Arguments: in, out.
struct Linear {
  explicit Linear(const benchmark::State& state)
      : in(state.range(0)),
        out(state.range(1)),
        x(at::randn({kTokens, kBatch, in})),
        g(at::randn({kTokens, kBatch, out})) {}

  static constexpr int64_t kTokens = 128;
  static constexpr int64_t kBatch = 32;
  int64_t in, out;
  at::Tensor x, g;
};

/// What a plain backward does for the weight.
void linear_plain(benchmark::State& state) {
  const Linear l(state);
  for (auto _ : state) {
    benchmark::DoNotOptimize(l.g.flatten(0, 1).t().mm(l.x.flatten(0, 1)));
  }
}

/// The gradients of single examples, their norms, and a sum with factors: LibTorch's batched product.
void linear_bmm(benchmark::State& state) {
  const Linear l(state);
  const auto factors = at::rand({Linear::kBatch});
  for (auto _ : state) {
    const auto products = at::bmm(l.g.permute({1, 2, 0}), l.x.transpose(0, 1));
    benchmark::DoNotOptimize(products.square().sum({1, 2}));
    benchmark::DoNotOptimize(at::mv(products.flatten(1).t(), factors));
  }
}

/// The same by our kernel.
void linear_kernel(benchmark::State& state) {
  const Linear l(state);
  const auto factors = at::rand({Linear::kBatch});
  torchlore::detail::BufferPool pool(1 << 30);
  for (auto _ : state) {
    auto norms = at::zeros({Linear::kBatch}, at::kDouble);
    auto products = pool.empty({Linear::kBatch, l.out, l.in});
    auto sum = at::zeros({l.out, l.in});
    torchlore::kernels::linear_gradients(
        {.layout = {Linear::kTokens, Linear::kBatch, 1},
         .input = l.x.const_data_ptr<float>(),
         .gradient = l.g.const_data_ptr<float>(),
         .in = l.in,
         .out = l.out},
        {norms.mutable_data_ptr<double>(), products.mutable_data_ptr<float>()}, {}, pool);
    torchlore::kernels::add_weighted_sum(products.const_data_ptr<float>(),
                                         factors.const_data_ptr<float>(), Linear::kBatch,
                                         l.out * l.in, sum.mutable_data_ptr<float>());
  }
}
#define TORCHLORE_LINEAR(name) \
  BENCHMARK(name)              \
      ->Args({128, 128})       \
      ->Args({128, 384})       \
      ->Args({128, 512})       \
      ->Args({512, 128})       \
      ->Unit(benchmark::kMillisecond)
TORCHLORE_LINEAR(linear_plain);
TORCHLORE_LINEAR(linear_bmm);
TORCHLORE_LINEAR(linear_kernel);

/// A 3x3 convolution with padding 1 over 28x28 places. Arguments: input channels, output channels.
struct Convolution {
  explicit Convolution(const benchmark::State& state)
      : in(state.range(0)),
        out(state.range(1)),
        x(at::randn({kBatch, in, kSide, kSide})),
        g(at::randn({kBatch, out, kSide, kSide})),
        w(at::randn({out, in, 3, 3})) {}

  static constexpr int64_t kBatch = 64;
  static constexpr int64_t kSide = 28;
  int64_t in, out;
  at::Tensor x, g, w;
};

void convolution_plain(benchmark::State& state) {
  const Convolution c(state);
  for (auto _ : state) {
    benchmark::DoNotOptimize(at::convolution_backward(c.g, c.x, c.w, at::OptionalIntArrayRef(),
                                                      {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1,
                                                      {false, true, false}));
  }
}

void convolution_kernel(benchmark::State& state) {
  const Convolution c(state);
  const auto factors = at::rand({Convolution::kBatch});
  torchlore::detail::BufferPool pool(1 << 30);
  torchlore::kernels::ConvolutionImages images{.batch = Convolution::kBatch,
                                               .in_channels = c.in,
                                               .out_channels = c.out,
                                               .in = {Convolution::kSide, Convolution::kSide},
                                               .out = {Convolution::kSide, Convolution::kSide},
                                               .kernel = {3, 3},
                                               .padding = {1, 1}};
  const auto set = [](torchlore::kernels::Images& to, const at::Tensor& from) {
    to.data = from.const_data_ptr<float>();
    std::copy_n(from.strides().begin(), 4, to.strides.begin());
  };
  set(images.input, c.x);
  set(images.gradient, c.g);
  for (auto _ : state) {
    auto norms = at::zeros({Convolution::kBatch}, at::kDouble);
    auto products = pool.empty({Convolution::kBatch, images.weight_count()});
    auto sum = at::zeros({images.weight_count()});
    torchlore::kernels::convolution_gradients(
        images, {norms.mutable_data_ptr<double>(), products.mutable_data_ptr<float>()}, {}, pool);
    torchlore::kernels::add_weighted_sum(products.const_data_ptr<float>(),
                                         factors.const_data_ptr<float>(), Convolution::kBatch,
                                         images.weight_count(), sum.mutable_data_ptr<float>());
  }
}
#define TORCHLORE_CONVOLUTION(name) \
  BENCHMARK(name)->Args({1, 32})->Args({32, 64})->Args({64, 64})->Unit(benchmark::kMillisecond)
TORCHLORE_CONVOLUTION(convolution_plain);
TORCHLORE_CONVOLUTION(convolution_kernel);

}  // namespace

BENCHMARK_MAIN();
