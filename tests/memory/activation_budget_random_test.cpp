// ActivationBudget over random networks: some of those that the claim of the same name runs.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "budget_support.hpp"
#include "random_network.hpp"

namespace torchlore {
namespace {

TEST(ActivationBudgetRandom, NetworksOfAllModulesAreExact) {
  at::set_num_threads(1);
  for (uint64_t seed = 0; seed < testing::drawn_modules().size(); seed += 3) {
    testing::RandomNetwork network(seed);
    SCOPED_TRACE(network.names);
    testing::expect_exact({.parameters = network.parameters,
                           .loss = [&] { return network.loss(); },
                           .buffers = network.buffers,
                           // The workspace of oneDNN's layer has bytes that nobody writes or reads.
                           .may_mismatch = "aten::mkldnn_rnn_layer"});
  }
}

}  // namespace
}  // namespace torchlore
