// Where float16 training ends, for loss scales chosen beforehand and for scales that adapt.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/functional.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "claim.hpp"
#include "torchlore/step.hpp"

namespace torchlore::claims {
namespace {

namespace nn = torch::nn;

// All of this was fixed before the first run.
constexpr int64_t kBatch = 32;
constexpr int64_t kClasses = 10;
constexpr int kHighestScale = 24;  // static scales 2^0 … 2^24
constexpr double kRates[] = {0.01, 0.03, 0.1, 0.3, 1.0};
constexpr double kClose = 0.01;  // "ends within 1 % of float32's loss"

enum class Net { perceptron, convolution };

nn::Sequential make_net(Net net) {
  if (net == Net::perceptron) {
    return nn::Sequential(nn::Linear(64, 64), nn::GELU(), nn::Linear(64, 64), nn::GELU(),
                          nn::Linear(64, kClasses));
  }
  const auto conv = [](int64_t from, int64_t to) {
    return nn::Conv2d(nn::Conv2dOptions(from, to, 3).padding(1).stride(2));
  };
  return nn::Sequential(nn::Functional([](const at::Tensor& x) {
                          return x.view({-1, 1, 8, 8});
                        }),
                        conv(1, 8), nn::GELU(), conv(8, 16), nn::GELU(),
                        nn::Functional([](const at::Tensor& x) { return x.flatten(1); }),
                        nn::Linear(64, kClasses));
}

/// Ten clusters in 64 dimensions, and a fifth of the labels at random: the loss does not go to 0.
struct Task {
  Task(int64_t seed, int64_t steps) {
    at::manual_seed(1000 + seed);
    const auto centres = 0.5 * at::randn({kClasses, 64});
    y = at::randint(kClasses, {steps * kBatch}, at::kLong);
    x = centres.index_select(0, y) + at::randn({steps * kBatch, 64});
    const auto noise = at::rand({steps * kBatch}) < 0.2;
    y = at::where(noise, at::randint(kClasses, {steps * kBatch}, at::kLong), y);
  }
  at::Tensor x, y;
};

at::Tensor loss_of(nn::Sequential& net, const at::Tensor& x, const at::Tensor& y) {
  return nn::functional::cross_entropy(net->forward(x), y);
}

struct Run {
  Net net;
  int64_t seed;
  double rate;
};

/// Trains once through the data; returns the loss over all of it, in float32.
double final_loss(const Run& run, const Task& task, int64_t steps, const Precision& precision) {
  at::manual_seed(run.seed);
  auto net = make_net(run.net);
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(run.rate).momentum(0.9));
  TrainingStep step(optimizer, {.precision = precision});
  for (int64_t i = 0; i < steps; ++i) {
    const auto from = i * kBatch, to = from + kBatch;
    step([&] { return loss_of(net, task.x.slice(0, from, to), task.y.slice(0, from, to)); });
  }
  const at::NoGradGuard no_grad;
  return loss_of(net, task.x, task.y).item<double>();
}

bool close(double loss, double reference) {
  return std::isfinite(loss) && std::abs(loss - reference) <= kClose * std::abs(reference);
}

/// A scale that stays; a step that overflows is skipped.
Precision fixed_scale(double scale) {
  return Precision::fp16({.init_scale = scale, .min_scale = scale, .max_scale = scale});
}

/// The article's: doubled after every good step, halved after an overflow.
Precision doubling() { return Precision::fp16({.init_scale = 65536, .growth_interval = 1}); }

/// This library's, as by default.
Precision ours() { return Precision::fp16().with_fallback(); }

struct Shares {
  int64_t runs = 0;
  int64_t diverged = 0;  // float32's loss was not finite: nothing to be compared with
  int64_t ours = 0, doubling = 0;
  std::vector<int64_t> fixed = std::vector<int64_t>(kHighestScale + 1);
};

Shares run_all(const Context& context) {
  const int64_t seeds = context.quick() ? 1 : 6;
  const int64_t steps = context.quick() ? 10 : 100;
  Shares shares;
  for (int64_t seed = 1; seed <= seeds; ++seed) {
    const Task task(seed, steps);
    for (const auto net : {Net::perceptron, Net::convolution}) {
      for (const double rate : kRates) {
        const Run run{net, seed, rate};
        const double reference = final_loss(run, task, steps, Precision::fp32());
        if (!std::isfinite(reference)) {
          ++shares.diverged;
          continue;
        }
        const auto ends_close = [&](const Precision& precision) -> int64_t {
          return close(final_loss(run, task, steps, precision), reference) ? 1 : 0;
        };
        ++shares.runs;
        shares.ours += ends_close(ours());
        shares.doubling += ends_close(doubling());
        for (size_t s = 0; s < shares.fixed.size(); ++s) {
          shares.fixed[s] += ends_close(fixed_scale(std::ldexp(1.0, static_cast<int>(s))));
        }
      }
      context.say(fmt::format("seed {} of {}", seed, seeds));
    }
  }
  return shares;
}

std::string list_of(const Shares& shares) {
  std::string text;
  for (size_t s = 0; s < shares.fixed.size(); ++s) {
    text += fmt::format("{}2^{}: {}", s == 0 ? "" : ", ", s, shares.fixed[s]);
  }
  return text;
}

void measure(Context& context) {
  const auto shares = run_all(context);
  const auto percent = [&](int64_t n) {
    return 100.0 * static_cast<double>(n) / static_cast<double>(shares.runs);
  };
  const auto setting = fmt::format(
      "{} runs: perceptron 64-64-64-10 and two convolutions with a linear layer x seeds x rates "
      "0.01, 0.03, 0.1, 0.3, 1; SGD with momentum 0.9, batch {}, {} steps, float16 autocast on the "
      "CPU; clusters with a fifth of the labels random",
      shares.runs, kBatch, context.quick() ? 10 : 100);
  const auto report = [&](const char* part, double value, const char* baseline, double bar,
                          const std::string& unit, const std::string& note) {
    context.report({.part = part,
                    .setting = setting,
                    .baseline = baseline,
                    .measured = {value, value, value},
                    .unit = unit,
                    .bar = bar,
                    .note = note});
  };
  const char* off = "% of runs not within 1 % of float32's loss";
  const auto best = *std::max_element(shares.fixed.begin(), shares.fixed.end());
  report("ours", 100 - percent(shares.ours), "the same runs in float32", 8.0, off,
         fmt::format("default options with fallback; {} runs left out because float32 diverged",
                     shares.diverged));
  report("against_static", percent(best) - percent(shares.ours), "the best static scale", 0.0,
         "points",
         fmt::format("share of the best of all static scales less ours; runs that ended close, for "
                     "each scale: {}",
                     list_of(shares)));
  report("doubling", 100 - percent(shares.doubling), "the same runs in float32", kNoBar, off,
         "from 2^16, doubled after every good step and halved after an overflow, which is skipped");
}

const bool registered =
    add_claim({.name = "fp16_stability",
               .group = "precision",
               .promise = "float16 with the default scaler ends where float32 does",
               .measure = measure,
               .minutes = 8});

}  // namespace
}  // namespace torchlore::claims
