// A whole private step against the plain SGD step, and the same of Opacus.
#include <fmt/format.h>
#include <torch/nn/module.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <deque>

#include "claim.hpp"
#include "harness/peer.hpp"
#include "harness/timing.hpp"
#include "models/private_task.hpp"
#include "torchlore/privacy/differentially_private.hpp"
#include "torchlore/step.hpp"

namespace torchlore::claims {
namespace {

using MakeTask = models::PrivateTask (*)(bool small);

models::PrivateTask plain_cnn(bool small) { return models::private_cnn(false, small); }

/// As in bench/peers/opacus_step.py: their numbers of the tasks and modes.
struct Setting {
  MakeTask make;
  int64_t peer_task;
};
constexpr Setting kSettings[] = {
    {models::private_mlp, 0}, {plain_cnn, 1}, {models::private_transformer, 3}};
struct PeerMode {
  const char* name;
  int64_t number;
};
constexpr PeerMode kPeerModes[] = {
    {"its plain", 0}, {"expanded weights", 2}, {"ghost clipping", 3}};

/// A network with its optimizer.
struct Training {
  explicit Training(models::PrivateTask from)
      : task(std::move(from)), optimizer(task.model->parameters(), 1e-3) {}

  models::PrivateTask task;
  torch::optim::SGD optimizer;
};

/// The same, and private.
struct PrivateTraining : Training {
  PrivateTraining(models::PrivateTask from, const NoiseSource& noise)
      : Training(std::move(from)),
        step(optimizer, {.gradient = differentially_private(
                             *task.model, {.noise_multiplier = 1.0,
                                           .max_grad_norm = 1.0,
                                           .dataset_size = 60'000,
                                           .expected_batch = static_cast<double>(task.batch),
                                           .sampling = torchlore::Sampling::fixed_size,
                                           .noise = noise})}) {}

  TrainingStep step;
};

std::deque<Peer> start_peers(const Context& context, int64_t task) {
  std::deque<Peer> peers;
  for (const auto& mode : kPeerModes) {
    peers.emplace_back(context, "opacus_step.py",
                       std::vector<std::string>{"--task", std::to_string(task), "--mode",
                                                std::to_string(mode.number), "--small",
                                                context.quick() ? "1" : "0"});
  }
  return peers;
}

void report_peer(Context& context, const models::PrivateTask& task, const Peer& peer,
                 const Estimate& ours, const std::vector<std::vector<double>>& theirs,
                 const std::string& note) {
  Line line{.part = task.name + ", Opacus",
            .setting = task.setting + ", SGD, norm 1, noise multiplier 1, fast noise",
            .baseline = "Opacus in its faster mode here",
            .bar = 1.0,
            .note = kPeerMissing};
  if (peer.installed()) {
    const auto expanded = ratio(theirs[1], theirs[0]), ghost = ratio(theirs[2], theirs[0]);
    const double best = std::min(expanded.value, ghost.value);
    line.baseline += ", " + peer.version();
    line.measured = {ours.value / best, ours.low / best, ours.high / best};
    line.note = fmt::format(
        "each side over its own plain step: {:.3f} against {:.3f} by expanded weights and {:.3f} "
        "by "
        "ghost clipping, whose noise is not secure either; {}",
        ours.value, expanded.value, ghost.value, note);
  }
  context.report(line);
}

void compare(Context& context, const Setting& setting) {
  Training plain(setting.make(context.quick()));
  PrivateTraining fast(setting.make(context.quick()), NoiseSource::fast_not_secure(1));
  PrivateTraining secure(setting.make(context.quick()), NoiseSource::secure());
  const auto private_step = [](PrivateTraining& training) {
    return [&training] { training.step([&] { return training.task.losses(); }); };
  };
  std::vector<Contender> contenders = {timed("plain",
                                             [&] {
                                               plain.optimizer.zero_grad();
                                               plain.task.loss().backward();
                                               plain.optimizer.step();
                                             }),
                                       timed("private, fast noise", private_step(fast)),
                                       timed("private, secure noise", private_step(secure))};
  auto peers = start_peers(context, setting.peer_task);
  const bool installed =
      std::all_of(peers.begin(), peers.end(), [](const Peer& peer) { return peer.installed(); });
  for (size_t i = 0; installed && i < peers.size(); ++i) {
    contenders.push_back(peers[i].contender(kPeerModes[i].name));
  }
  auto sampling = Sampling::of(context);
  if (!context.quick()) sampling = {.rounds = 11, .warmup = 2};
  const auto seconds = interleave(contenders, sampling);
  const auto note = absolute_times(contenders, seconds);
  const auto& task = plain.task;
  const auto line = [&](const char* part, size_t which, double bar) {
    context.report({.part = task.name + ", " + part,
                    .setting = task.setting + ", SGD, norm 1, noise multiplier 1",
                    .baseline = "zero_grad, forward, backward and step of torch::optim::SGD",
                    .measured = ratio(seconds[which], seconds[0]),
                    .bar = bar,
                    .note = note});
  };
  line("fast noise", 1, 1.12);
  line("secure noise", 2, 1.40);
  const std::vector<std::vector<double>> theirs(seconds.begin() + 3, seconds.end());
  report_peer(context, task, peers[0], ratio(seconds[1], seconds[0]), theirs, note);
}

void measure(Context& context) {
  for (const auto& setting : kSettings) compare(context, setting);
}

const bool registered =
    add_claim({.name = "private_step",
               .group = "privacy",
               .promise = "a whole private step against the plain SGD step, and Opacus' beside it",
               .measure = measure,
               .minutes = 3});

}  // namespace
}  // namespace torchlore::claims
