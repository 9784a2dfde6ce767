// What privacy for each client costs a federation: accuracy lost against the same rounds without noise.
#include <limits>
#include <sstream>
#include <vector>

#include "../../examples/federated/clients.hpp"
#include "claim.hpp"
#include "harness/statistics.hpp"

namespace torchlore::claims {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void measure(Context& context) {
  std::vector<std::vector<double>> lost(5);
  const std::vector<double> epsilons = {0.5, 1, 2, 4, 8};
  std::vector<double> accuracy;
  const int64_t seeds = context.quick() ? 1 : 5;
  federated::Settings settings;
  if (context.quick()) settings = {.clients = 100, .rounds = 2, .train = 4'000, .test = 1'000};
  for (int64_t seed = 1; seed <= seeds; ++seed) {
    settings.seed = static_cast<uint64_t>(seed);
    const auto task = federated::load(settings);
    if (!task) {
      context.say(models::kFashionMnistMissing);
      return;
    }
    const auto run = [&](double epsilon) {
      auto aggregator = federated::make_aggregator(federated::noise_for(epsilon, settings.rounds),
                                                   settings.clients);
      return federated::train(*task, aggregator, settings);
    };
    accuracy.push_back(run(kInfinity));
    for (size_t i = 0; i < epsilons.size(); ++i)
      lost[i].push_back(accuracy.back() - run(epsilons[i]));
  }
  for (size_t i = 0; i < epsilons.size(); ++i) {
    std::ostringstream part;
    part << "epsilon_" << epsilons[i];
    context.report(
        {.part = part.str(),
         .setting =
             "Fashion-MNIST in 7x7, 100 clients with two classes each, 10 rounds, all clients in "
             "each; delta 1e-3, "
             "linear classifier (500 parameters), one pass of SGD per client and round, 5 seeds",
         .baseline = "the same without noise: " + std::to_string(median(accuracy)) + " % accuracy",
         .measured = median_estimate(lost[i]),
         .unit = "% accuracy lost",
         .bar = kNoBar});
  }
}

const bool registered = add_claim({.name = "federation",
                                   .group = "privacy",
                                   .promise = "what privacy for each client costs a federation",
                                   .measure = measure,
                                   .minutes = 4,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
