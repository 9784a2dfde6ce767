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
#include <memory>
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
// Added later, to tell what float16 does from what any rounding does: float32 itself, its first
// weights changed by at most what rounding them to float16 changes.
constexpr double kHalfRounding = 0x1p-11;

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

/// A net and its optimizer, and the data; trains once through them.
class Training {
 public:
  Training(const Run& run, const Task& task, int64_t steps) : task_(task), steps_(steps) {
    at::manual_seed(run.seed);
    net_ = make_net(run.net);
    optimizer_ = std::make_unique<torch::optim::SGD>(
        net_->parameters(), torch::optim::SGDOptions(run.rate).momentum(0.9));
  }

  /// Changes each weight by at most this share of it.
  void perturb(double share) {
    const at::NoGradGuard no_grad;
    for (auto& p : net_->parameters()) p.mul_(1 + share * (2 * at::rand_like(p) - 1));
  }

  /// Returns the loss over all of the data, in float32.
  double run(const Precision& precision) {
    TrainingStep step(*optimizer_, {.precision = precision});
    for (int64_t i = 0; i < steps_; ++i) step([&] { return loss(i); });
    return final_loss();
  }

  /// The same, but a batch that overflows is run again at half the scale instead of being skipped.
  double run_repeating() {
    LossScaler scaler;
    for (int64_t i = 0; i < steps_; ++i) {
      bool stepped = false;
      for (int tries = 0; !stepped && tries < 64; ++tries) {
        optimizer_->zero_grad();
        at::Tensor batch_loss;
        {
          const Autocast amp(at::kCPU, at::kHalf);
          batch_loss = loss(i);
        }
        scaler.scale(batch_loss).backward();
        stepped = scaler.step(*optimizer_);
        scaler.update();
      }
    }
    return final_loss();
  }

 private:
  at::Tensor loss(int64_t batch) {
    const auto from = batch * kBatch, to = from + kBatch;
    return loss_of(net_, task_.x.slice(0, from, to), task_.y.slice(0, from, to));
  }
  double final_loss() {
    const at::NoGradGuard no_grad;
    return loss_of(net_, task_.x, task_.y).item<double>();
  }

  const Task& task_;
  int64_t steps_;
  nn::Sequential net_{nullptr};
  std::unique_ptr<torch::optim::SGD> optimizer_;
};

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
  int64_t ours = 0, doubling = 0, repeating = 0, perturbed = 0;
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
        const double reference = Training(run, task, steps).run(Precision::fp32());
        if (!std::isfinite(reference)) {
          ++shares.diverged;
          continue;
        }
        const auto ends_close = [&](const Precision& precision) -> int64_t {
          return close(Training(run, task, steps).run(precision), reference) ? 1 : 0;
        };
        ++shares.runs;
        shares.ours += ends_close(ours());
        shares.doubling += ends_close(doubling());
        shares.repeating += close(Training(run, task, steps).run_repeating(), reference) ? 1 : 0;
        Training other(run, task, steps);
        other.perturb(kHalfRounding);
        shares.perturbed += close(other.run(Precision::fp32()), reference) ? 1 : 0;
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
  report("repeating", 100 - percent(shares.repeating), "the same runs in float32", kNoBar, off,
         "default scaler, but a batch that overflows is run again at half the scale, by hand, "
         "instead of being skipped");
  report(
      "float32_perturbed", 100 - percent(shares.perturbed), "the same runs in float32", kNoBar, off,
      "float32 against itself, its first weights changed by at most 2^-11 of each, what rounding "
      "them to float16 does: what no scale can repair");
}

const bool registered =
    add_claim({.name = "fp16_stability",
               .group = "precision",
               .promise = "float16 with the default scaler ends where float32 does",
               .measure = measure,
               .minutes = 8});

}  // namespace
}  // namespace torchlore::claims
