// Privacy accountants.
#include <benchmark/benchmark.h>

#include "torchlore/privacy/pld.hpp"
#include "torchlore/privacy/prv.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace {

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

}  // namespace

BENCHMARK_MAIN();
