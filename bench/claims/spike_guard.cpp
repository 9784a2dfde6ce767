// Injected explosions, with SpikeGuard and without, and clean runs in which it must stay quiet.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/randperm.h>
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "claim.hpp"
#include "harness/statistics.hpp"
#include "models/fashion_mnist.hpp"
#include "torchlore/step.hpp"

namespace torchlore::claims {
namespace {

// Fixed before the first run. SpikeGuard has its defaults, and the model.
constexpr double kMomentum = 0.9;
constexpr double kRate = 0.02;     // for batches of 64, and in proportion for others
constexpr double kGarbage = 1e4;   // what a bad batch's pixels are multiplied by
constexpr double kOverflow = 1e6;  // the same, beyond float16
constexpr int64_t kGlitch = 3;     // steps with 100 times the rate
constexpr int64_t kCorrupt = 5;    // batches in a row whose labels are each off by one
constexpr double kControlled = 1.05;

enum class Explosion { none, bad_batch, rate, labels, overflow };
constexpr std::array<Explosion, 4> kExplosions = {Explosion::bad_batch, Explosion::rate,
                                                  Explosion::labels, Explosion::overflow};

const char* name_of(Explosion kind) {
  constexpr const char* names[] = {"none", "bad batch", "rate x100", "corrupt labels", "overflow"};
  return names[static_cast<size_t>(kind)];
}

struct Run {
  Explosion explosion = Explosion::none;
  bool guarded = true;
  bool half = false;
  bool batch_norm = true;
  int64_t seed = 1;
  int64_t batch = 64;
  int64_t steps = 0;

  double rate() const { return kRate * static_cast<double>(batch) / 64; }
  /// In the second and third quarter of the run, another one for each seed and kind.
  int64_t explodes_at() const {
    const auto kind = static_cast<int64_t>(explosion);
    return steps / 4 + (seed * 7919 + kind * 104729) % (steps / 2);
  }
};

struct Outcome {
  double held_out = 0;
  int64_t spikes = 0;
};

torch::nn::Sequential make_model(bool batch_norm) {
  torch::nn::Sequential net(torch::nn::Flatten(), torch::nn::Linear(784, 64));
  if (batch_norm) net->push_back(torch::nn::BatchNorm1d(64));
  net->push_back(torch::nn::ReLU());
  net->push_back(torch::nn::Linear(64, 10));
  return net;
}

double held_out_loss(torch::nn::Sequential& model, const models::Images& images) {
  const at::NoGradGuard no_grad;
  model->eval();
  return torch::nn::functional::cross_entropy(model->forward(images.x), images.y).item<double>();
}

/// What step `i` of an exploding run is given.
void explode(const Run& run, int64_t i, TrainingStep& step, at::Tensor& x, at::Tensor& y) {
  const int64_t since = i - run.explodes_at();
  if (run.explosion == Explosion::bad_batch && since == 0) x = x * kGarbage;
  if (run.explosion == Explosion::overflow && since == 0) x = x * kOverflow;
  if (run.explosion == Explosion::rate && since == 0) step.learning_rate()->scale(100);
  if (run.explosion == Explosion::rate && since == kGlitch) step.learning_rate()->scale(0.01);
  if (run.explosion == Explosion::labels && since >= 0 && since < kCorrupt) y = (y + 1) % 10;
}

Outcome train(const models::FashionMnist& data, const Run& run) {
  at::manual_seed(static_cast<uint64_t>(run.seed));
  auto model = make_model(run.batch_norm);
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(run.rate()).momentum(kMomentum));
  TrainingStepOptions options{.schedule = schedule::cosine(run.steps)};
  if (run.half) options.precision = Precision::fp16();
  if (run.guarded) options.spike = SpikeGuardOptions{.model = &*model};
  TrainingStep step(optimizer, options);
  at::Tensor order;
  const int64_t per_epoch = data.train.size() / run.batch;
  for (int64_t i = 0; i < run.steps; ++i) {
    const int64_t in_epoch = i % per_epoch;
    if (in_epoch == 0) order = at::randperm(data.train.size());
    const auto rows = order.slice(0, in_epoch * run.batch, (in_epoch + 1) * run.batch);
    auto x = data.train.x.index_select(0, rows), y = data.train.y.index_select(0, rows);
    explode(run, i, step, x, y);
    step([&] { return torch::nn::functional::cross_entropy(model->forward(x), y); });
  }
  return {.held_out = held_out_loss(model, data.test),
          .spikes = run.guarded ? step.spike_guard()->spikes() : 0};
}

/// The share with a 95 % interval (Wilson).
Estimate share(int64_t count, int64_t all) {
  const double n = static_cast<double>(all), p = static_cast<double>(count) / n, z = 1.96;
  const double middle = (p + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z / (1 + z * z / n) * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return {p, std::fmax(0, middle - half), std::fmin(1, middle + half)};
}

struct Size {
  int64_t train, test, steps, seeds, clean_steps, clean_seeds;
};

void measure_explosions(Context& context, const models::FashionMnist& data, const Size& size) {
  int64_t missed = 0, missed_without = 0, all = 0;
  std::string note;
  for (const auto kind : kExplosions) {
    int64_t missed_here = 0, without_here = 0;
    std::vector<double> ratios;
    for (int64_t seed = 1; seed <= size.seeds; ++seed) {
      // A normalised first layer hides a bad batch's scale: half of the seeds are without.
      Run run{.half = kind == Explosion::overflow,
              .batch_norm = seed % 2 == 0,
              .seed = seed,
              .steps = size.steps};
      run.guarded = false;
      const double clean = train(data, run).held_out;
      run.explosion = kind;
      const double without = train(data, run).held_out;
      run.guarded = true;
      const double with = train(data, run).held_out;
      ratios.push_back(with / clean);
      if (!(with <= kControlled * clean)) ++missed_here;
      if (!(without <= kControlled * clean)) ++without_here;
    }
    note += fmt::format(
        "{}: {} of {} missed ({} without the guard), median loss {:.3f} of the "
        "uninjected run's; ",
        name_of(kind), missed_here, size.seeds, without_here, median(ratios));
    context.say(note);
    missed += missed_here;
    missed_without += without_here;
    all += size.seeds;
  }
  context.report(
      {.part = "explosions",
       .setting = fmt::format("Fashion-MNIST, first {} images, {} held out; 784-64-10 with and "
                              "without batch norm, batch 64, SGD with momentum, cosine, {} steps, "
                              "{} explosions: a batch times {:g}, {} steps at 100 times the rate, "
                              "{} batches with wrong labels, a batch times {:g} in float16",
                              size.train, size.test, size.steps, all, kGarbage, kGlitch, kCorrupt,
                              kOverflow),
       .baseline = "the run of the same seed without an explosion and without a guard",
       .measured = share(missed, all),
       .unit = "of the runs end more than 5 % above",
       .bar = 0.10,
       .note = note + fmt::format("without the guard {} of {} end above", missed_without, all)});
}

void measure_clean(Context& context, const models::FashionMnist& data, const Size& size) {
  int64_t spikes = 0, steps = 0, runs = 0;
  std::string note;
  for (const int64_t batch : {1, 4, 16, 64}) {
    int64_t here = 0;
    for (int64_t seed = 1; seed <= size.clean_seeds; ++seed) {
      const Run run{.batch_norm = batch > 1 && seed % 2 == 0,
                    .seed = 100 + seed,
                    .batch = batch,
                    .steps = size.clean_steps};
      here += train(data, run).spikes;
      steps += run.steps;
      ++runs;
    }
    note +=
        fmt::format("{}batch {}: {}", note.empty() ? "false triggers with " : ", ", batch, here);
    spikes += here;
  }
  const double per = 10'000.0 / static_cast<double>(steps);
  const double rate = static_cast<double>(spikes);
  // Of a Poisson count, by its square root; none seen is at most 3.
  const double spread = 1.96 * std::sqrt(rate);
  context.report({.part = "false triggers",
                  .setting = fmt::format("the same model, {} clean runs of {} steps, batches of 1, "
                                         "4, 16 and 64",
                                         runs, size.clean_steps),
                  .baseline = "none at all",
                  .measured = {rate * per, std::fmax(0, rate - spread) * per,
                               (spikes == 0 ? 3 : rate + spread) * per},
                  .unit = "per 10,000 steps",
                  .bar = 1,
                  .note = note});
}

void measure(Context& context) {
  const auto size = context.quick() ? Size{.train = 640,
                                           .test = 100,
                                           .steps = 40,
                                           .seeds = 1,
                                           .clean_steps = 40,
                                           .clean_seeds = 1}
                                    : Size{.train = 16'000,
                                           .test = 2'000,
                                           .steps = 1'500,
                                           .seeds = 11,
                                           .clean_steps = 4'000,
                                           .clean_seeds = 6};
  const auto data = models::load_fashion_mnist(size.train, size.test);
  if (!data) {
    return context.report({.setting = "Fashion-MNIST",
                           .baseline = "the run without an explosion",
                           .bar = 0.10,
                           .note = models::kFashionMnistMissing});
  }
  measure_explosions(context, *data, size);
  measure_clean(context, *data, size);
}

const bool registered = add_claim({.name = "spike_guard",
                                   .group = "gradient",
                                   .promise = "explosions do not change how a run ends",
                                   .measure = measure,
                                   .minutes = 5,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
