// What audits prove of private steps, and of mechanisms that are broken.
#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "claim.hpp"
#include "harness/statistics.hpp"
#include "privacy/canaries.hpp"
#include "torchlore/privacy/audit.hpp"
#include "torchlore/privacy/gaussian_mechanism.hpp"
#include "torchlore/privacy/gaussian_noise.hpp"
#include "torchlore/step.hpp"

namespace torchlore::claims {
namespace {

using testing::Canaries;
using testing::scores_of;
using testing::split;

// Fixed before the first run.
constexpr double kEpsilon = 4, kDelta = 1e-5;
constexpr int64_t kSteps = 5;       // of a run; together they spend ε
constexpr int64_t kFew = 1'000;     // canaries of an audit of one run
constexpr int64_t kGuesses = 100;   // about these
constexpr int64_t kMany = 200'000;  // canaries that each are a trial of the same mechanism
constexpr int64_t kBroken = 2'000;  // canaries of a broken mechanism
constexpr int64_t kBrokenGuesses = 800;
const AuditOptions kOptions{.delta = kDelta};

/// Private training; a canary's score is what its own weight has moved by.
std::vector<double> private_run(const Canaries& canaries) {
  torch::nn::Embedding model(torch::nn::EmbeddingOptions(canaries.count(), 1));
  const auto before = model->weight.detach().clone();
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(1.0));
  const auto all = static_cast<double>(canaries.count());
  const double sigma =
      gaussian_noise_multiplier(kEpsilon, kDelta) * std::sqrt(static_cast<double>(kSteps));
  const auto dp = differentially_private(
      *model, {.noise_multiplier = sigma, .dataset_size = canaries.count(), .expected_batch = all});
  TrainingStep step(optimizer, {.gradient = dp});
  const auto tokens = at::tensor(canaries.tokens);
  for (int64_t i = 0; i < kSteps; ++i) {
    // Ten times as long as the clipping norm.
    step(tokens, [&](const at::Tensor& t) { return model->forward(t).squeeze(1) * -10; });
  }
  return scores_of(model->weight.detach() - before);
}

void audit_one_runs(Context& context, int64_t runs) {
  std::vector<double> bounds;
  for (int64_t seed = 0; seed < runs; ++seed) {
    const Canaries canaries(kFew, static_cast<uint64_t>(seed));
    bounds.push_back(audit_one_run(private_run(canaries), canaries.included, kGuesses, kOptions) /
                     kEpsilon);
  }
  const double most = *std::max_element(bounds.begin(), bounds.end());
  context.report(
      {.part = "one_run",
       .setting = fmt::format("{} runs of {} steps, {} canaries, {} guesses", runs, kSteps, kFew,
                              kGuesses),
       .baseline = "the claimed epsilon, 4 at delta 1e-5",
       .measured = {most, median(bounds), most},
       .bar = 1,
       .note = "the largest lower bound of all runs at 95 %; the interval begins at the median"});
}

void audit_worst_case(Context& context, int64_t runs, int64_t canary_count) {
  std::vector<double> free, gaussian;
  for (int64_t seed = 0; seed < runs; ++seed) {
    const Canaries canaries(canary_count, static_cast<uint64_t>(1'000 + seed));
    const auto [with, without] = split(private_run(canaries), canaries);
    const auto audit = audit_canary(with, without, kOptions);
    free.push_back(audit.epsilon / kEpsilon);
    gaussian.push_back(audit.gaussian_epsilon / kEpsilon);
  }
  const auto report = [&](const char* part, const std::vector<double>& shares, const char* note) {
    const double least = *std::min_element(shares.begin(), shares.end());
    const double most = *std::max_element(shares.begin(), shares.end());
    const auto setting = fmt::format(
        "{} runs of {} steps, each with {} trials of a canary with a row of its "
        "own",
        runs, kSteps, canary_count);
    context.report({.part = std::string(part) + "_found",
                    .setting = setting,
                    .baseline = "the lower bound of the audit at 95 %",
                    .measured = {1 / least, 1 / most, 1 / least},
                    .bar = 2,
                    .note = std::string("claimed epsilon over the least bound; ") + note});
    context.report({.part = std::string(part) + "_valid",
                    .setting = setting,
                    .baseline = "the claimed epsilon, 4 at delta 1e-5",
                    .measured = {most, least, most},
                    .bar = 1,
                    .note = std::string("the largest lower bound of all runs; ") + note});
  };
  report("canary", free, "whatever the mechanism");
  report("canary_gaussian", gaussian, "given that the mechanism is Gaussian");
}

/// The share of the claimed ε that both audits prove at least, of a mechanism that is not private.
double proved(const at::Tensor& released, const Canaries& canaries) {
  const auto scores = scores_of(released);
  const auto [with, without] = split(scores, canaries);
  return std::min(audit_one_run(scores, canaries.included, kBrokenGuesses, kOptions),
                  audit_canary(with, without, kOptions).epsilon) /
         kEpsilon;
}

void audit_broken(Context& context) {
  const double sigma = gaussian_noise_multiplier(kEpsilon, kDelta);
  const Canaries canaries(kBroken, 7);
  const auto sum = at::zeros({kBroken}, at::kDouble);
  sum.index_fill_(0, at::tensor(canaries.tokens), 1.0);
  const auto noisy = [&](const at::Tensor& values, double stddev) {
    auto released = values.clone();
    add_gaussian_noise_({released}, stddev, NoiseSource::secure());
    return released;
  };
  const auto noise = noisy(at::zeros({kBroken}, at::kDouble), sigma);
  const double unclipped = proved(noisy(sum * 10, sigma), canaries);
  const double divided = proved(noisy(sum, sigma / kBroken), canaries);
  const double reused = proved((sum + noise) - noise, canaries);
  const double least = std::min({unclipped, divided, reused});
  context.report(
      {.part = "broken",
       .setting = "no clipping of gradients ten times too long; noise divided by the batch of "
                  "2,000; the same noise on two releases",
       .baseline = "the least lower bound of both audits, over the claimed epsilon",
       .measured = {1 / least},
       .bar = 0.999,
       .note = fmt::format("proved of the claimed epsilon of 4: {:.2f}, {:.2f} and {:.2f} times",
                           unclipped, divided, reused)});
}

void measure(Context& context) {
  const int64_t runs = context.quick() ? 2 : 20;
  audit_one_runs(context, runs);
  audit_worst_case(context, runs, context.quick() ? 20'000 : kMany);
  audit_broken(context);
}

const bool registered =
    add_claim({.name = "privacy_audit",
               .group = "privacy",
               .promise = "audits prove half of epsilon, never more than it, and find "
                          "broken mechanisms",
               .measure = measure,
               .minutes = 3,
               .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
