// ActivationBudget over networks drawn at random from all modules of torch::nn: no bit may differ.
#include <fmt/format.h>

#include "claim.hpp"
#include "memory/budget_run.hpp"
#include "memory/random_network.hpp"

namespace torchlore::claims {
namespace {

/// The pass of one network under a budget, compared with the plain one.
int64_t differences(const torchlore::testing::Outcome& a, const torchlore::testing::Outcome& b) {
  int64_t count = 0;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    count += torchlore::testing::same_bytes(a.tensors[i], b.tensors[i]) ? 0 : 1;
  }
  return count;
}

void measure(Context& context) {
  constexpr double kShares[] = {0.5, 0.1, 0.0};
  const uint64_t networks = context.quick() ? 12 : 300;
  int64_t different[3] = {0, 0, 0};
  int64_t replayed = 0;
  for (uint64_t seed = 0; seed < networks; ++seed) {
    torchlore::testing::RandomNetwork network(seed);
    const torchlore::testing::BudgetCase test{.parameters = network.parameters,
                                              .loss = [&] { return network.loss(); },
                                              .buffers = network.buffers};
    std::vector<at::Tensor> before;
    for (const auto& buffer : network.buffers) before.push_back(buffer.clone());
    const auto plain = torchlore::testing::run_once(test, -1, false, before);
    const auto full = torchlore::testing::run_once(test, int64_t{1} << 40, false, before);
    for (size_t i = 0; i < 3; ++i) {
      const auto budget =
          static_cast<int64_t>(static_cast<double>(full.stats.peak_pool_bytes) * kShares[i]);
      const auto run = torchlore::testing::run_once(test, budget, false, before);
      different[i] += differences(run, plain) == 0 ? 0 : 1;
      replayed += run.stats.replayed_ops;
    }
  }
  for (size_t i = 0; i < 3; ++i) {
    context.report(
        {.part = fmt::format("{:.0f}%", kShares[i] * 100),
         .setting = fmt::format("{} networks of 3 to 6 modules, seeds 0 to {}; {} modules to draw "
                                "from, each at least once",
                                networks, networks - 1, torchlore::testing::drawn_modules().size()),
         .baseline = "the plain network",
         .measured = {static_cast<double>(different[i])},
         .unit = "networks that differ",
         .bar = 0,
         .note = fmt::format("loss, gradients, buffers and the next random numbers, bit by bit; {} "
                             "ops ran again over all shares",
                             replayed)});
  }
}

const bool registered = add_claim({.name = "activation_budget_random",
                                   .group = "memory",
                                   .promise = "an activation budget changes no bit of networks "
                                              "drawn from all modules of torch::nn",
                                   .measure = measure,
                                   .minutes = 1,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
