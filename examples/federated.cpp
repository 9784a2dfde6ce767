// Federated training with privacy for each client: 100 clients who each know two kinds of clothes, and what
// a small epsilon costs.
//
//   federated [--quick]
#include <fmt/format.h>

#include <cstring>
#include <limits>

#include "federated/clients.hpp"
#include "torchlore/privacy/prv.hpp"

int main(int argc, char** argv) {
  federated::Settings settings;
  if (argc > 1 && std::strcmp(argv[1], "--quick") == 0) {
    settings = {.clients = 100, .rounds = 2, .train = 4'000, .test = 1'000};
  }
  auto task = federated::load(settings);
  if (!task) {
    fmt::print("{}: made-up data instead\n", torchlore::models::kFashionMnistMissing);
    task = federated::made_up(settings);
  }
  fmt::print("{} clients with two kinds of images each, {} rounds, delta {}\n\n", settings.clients,
             settings.rounds, federated::kDelta);
  fmt::print("epsilon  noise multiplier  spent  accuracy\n");
  for (const double epsilon : {0.5, 1.0, 2.0, 4.0, 8.0, std::numeric_limits<double>::infinity()}) {
    const double noise = federated::noise_for(epsilon, settings.rounds);
    auto aggregator = federated::make_aggregator(noise, settings.clients);
    const double accuracy = federated::train(*task, aggregator, settings);
    const double spent =
        noise > 0 ? torchlore::prv_epsilon(aggregator.ledger(), federated::kDelta).upper : epsilon;
    fmt::print("{:7}  {:16.2f}  {:5.2f}  {:6.2f} %\n", epsilon, noise, spent, accuracy);
  }
}
