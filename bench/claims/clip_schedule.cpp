// The article's threshold schedule beside fixed thresholds and the adaptive clippers: steps to an
// accuracy, and the final accuracy, on Fashion-MNIST.
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/randperm.h>
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "claim.hpp"
#include "harness/statistics.hpp"
#include "models/fashion_mnist.hpp"
#include "torchlore/step.hpp"

namespace torchlore::claims {
namespace {

// Fixed before the first run.
constexpr int64_t kBatch = 64;
constexpr double kRate = 0.1;
constexpr double kMomentum = 0.9;
constexpr double kAccuracy = 0.80;
constexpr int64_t kCheckEvery = 25;

struct Size {
  int64_t train, test, epochs, seeds;
  int64_t steps_per_epoch() const { return train / kBatch; }
  int64_t steps() const { return epochs * steps_per_epoch(); }
};

struct Way {
  std::string name;
  Clip clip;
};

torch::nn::Sequential make_model(bool batch_norm) {
  torch::nn::Sequential net;
  const auto block = [&](int64_t in, int64_t out) {
    net->push_back(torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, 3).padding(1)));
    if (batch_norm) net->push_back(torch::nn::BatchNorm2d(out));
    net->push_back(torch::nn::ReLU());
    net->push_back(torch::nn::MaxPool2d(2));
  };
  block(1, 8);
  block(8, 16);
  net->push_back(torch::nn::Flatten());
  net->push_back(torch::nn::Linear(16 * 7 * 7, 10));
  return net;
}

/// AGC leaves the last layer out, as in its paper.
std::vector<Way> ways(const Size& size, const torch::nn::Sequential& model) {
  const auto parameters = model->parameters();
  return {
      {"schedule", clip::norm(clip::threshold::epoch_ramp(size.epochs, size.steps_per_epoch()))},
      {"none", clip::none()},
      {"fixed 0.1", clip::norm(0.1)},
      {"fixed 0.5", clip::norm(0.5)},
      {"fixed 1", clip::norm(1.0)},
      {"autoclip", clip::autoclip(10)},
      {"zclip", clip::zclip()},
      {"agc", clip::agc({.skip = {parameters.end() - 2, parameters.end()}})}};
}

double accuracy(torch::nn::Sequential& model, const models::Images& images) {
  const at::NoGradGuard no_grad;
  model->eval();
  const auto right = model->forward(images.x).argmax(1).eq(images.y).to(at::kDouble).mean();
  model->train();
  return right.item<double>();
}

struct Outcome {
  double steps = 0;  // to the accuracy; all steps if it is not reached
  bool reached = false;
  double accuracy = 0;  // in the end
};

Outcome train(const models::FashionMnist& data, const Size& size, bool batch_norm, size_t way,
              int64_t seed) {
  at::manual_seed(static_cast<uint64_t>(seed));  // the same weights and batches for all ways
  auto model = make_model(batch_norm);
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(kRate).momentum(kMomentum));
  TrainingStep step(optimizer, {.clip = ways(size, model)[way].clip});
  Outcome outcome{.steps = static_cast<double>(size.steps())};
  at::Tensor order;
  for (int64_t i = 0; i < size.steps(); ++i) {
    const int64_t in_epoch = i % size.steps_per_epoch();
    if (in_epoch == 0) order = at::randperm(size.train);
    const auto rows = order.slice(0, in_epoch * kBatch, (in_epoch + 1) * kBatch);
    const auto x = data.train.x.index_select(0, rows), y = data.train.y.index_select(0, rows);
    step([&] { return torch::nn::functional::cross_entropy(model->forward(x), y); });
    if (outcome.reached || (i + 1) % kCheckEvery != 0) continue;
    outcome.reached = accuracy(model, data.test) >= kAccuracy;
    if (outcome.reached) outcome.steps = static_cast<double>(i + 1);
  }
  outcome.accuracy = accuracy(model, data.test);
  return outcome;
}

std::vector<double> each(const std::vector<Outcome>& outcomes, double Outcome::*field) {
  std::vector<double> values;
  for (const auto& outcome : outcomes) values.push_back(outcome.*field);
  return values;
}

int64_t reached(const std::vector<Outcome>& outcomes) {
  return std::count_if(outcomes.begin(), outcomes.end(), [](const auto& o) { return o.reached; });
}

void report(Context& context, const Size& size, bool batch_norm,
            const std::vector<std::vector<Outcome>>& outcomes, const std::vector<Way>& all) {
  const std::string net = batch_norm ? "with batch norm" : "without batch norm";
  const auto setting = fmt::format(
      "Fashion-MNIST, first {} images, {} held out; 2 convolutions and a linear layer {}; SGD {} "
      "momentum {}, batch {}, {} epochs, {} paired seeds",
      size.train, size.test, net, kRate, kMomentum, kBatch, size.epochs, size.seeds);
  for (size_t way = 1; way < all.size(); ++way) {
    const auto& ours = outcomes[0];
    const auto& theirs = outcomes[way];
    const auto part = fmt::format("{}, {}", all[way].name, batch_norm ? "norm" : "plain");
    context.report(
        {.part = part + ", steps",
         .setting = setting,
         .baseline = "clipping: " + all[way].name,
         .measured = ratio(each(ours, &Outcome::steps), each(theirs, &Outcome::steps)),
         .bar = kNoBar,
         .note = fmt::format(
             "steps to {:.0f} % accuracy, looked at every {}: schedule {:.0f} ({} of {} seeds), {} "
             "{:.0f} ({})",
             100 * kAccuracy, kCheckEvery, median(each(ours, &Outcome::steps)), reached(ours),
             size.seeds, all[way].name, median(each(theirs, &Outcome::steps)), reached(theirs))});
    std::vector<double> points;
    for (size_t seed = 0; seed < ours.size(); ++seed) {
      points.push_back(100 * (ours[seed].accuracy - theirs[seed].accuracy));
    }
    context.report({.part = part + ", accuracy",
                    .setting = setting,
                    .baseline = "clipping: " + all[way].name,
                    .measured = median_estimate(points),
                    .unit = "points",
                    .bar = kNoBar,
                    .note = fmt::format("final accuracy: schedule {:.2f} %, {} {:.2f} %; above 0 "
                                        "the schedule is better",
                                        100 * median(each(ours, &Outcome::accuracy)), all[way].name,
                                        100 * median(each(theirs, &Outcome::accuracy)))});
  }
}

void measure(Context& context) {
  const auto size = context.quick() ? Size{.train = 640, .test = 100, .epochs = 1, .seeds = 1}
                                    : Size{.train = 16'000, .test = 2'000, .epochs = 5, .seeds = 5};
  const auto data = models::load_fashion_mnist(size.train, size.test);
  if (!data) {
    return context.report({.setting = "Fashion-MNIST",
                           .baseline = "fixed thresholds",
                           .bar = kNoBar,
                           .note = models::kFashionMnistMissing});
  }
  for (const bool batch_norm : {false, true}) {
    const auto all = ways(size, make_model(batch_norm));
    std::vector<std::vector<Outcome>> outcomes(all.size());
    for (int64_t seed = 1; seed <= size.seeds; ++seed) {
      for (size_t way = 0; way < all.size(); ++way) {
        outcomes[way].push_back(train(*data, size, batch_norm, way, seed));
      }
      context.say(fmt::format("seed {}, batch norm {}", seed, batch_norm));
    }
    report(context, size, batch_norm, outcomes, all);
  }
}

const bool registered = add_claim({.name = "clip_schedule",
                                   .group = "gradient",
                                   .promise = "what the threshold schedule gives beside others",
                                   .measure = measure,
                                   .minutes = 8,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
