// What TrainingStep costs beside the loop written by hand, where the work is too small to hide it.
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/sgd.h>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "torchlore/step.hpp"

namespace torchlore::claims {
namespace {

constexpr int64_t kBatch = 32;
constexpr double kMaxNorm = 1.0;

/// A 784-64-10 classifier and one batch for it.
struct Task {
  torch::nn::Sequential model{torch::nn::Linear(784, 64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 10)};
  torch::optim::SGD optimizer{model->parameters(), 1e-3};
  at::Tensor x = at::randn({kBatch, 784});
  at::Tensor y = at::randint(10, {kBatch});

  at::Tensor loss() { return torch::nn::functional::cross_entropy(model->forward(x), y); }
};

void bare_step(Task& task, bool clip) {
  task.optimizer.zero_grad();
  task.loss().backward();
  if (clip) torch::nn::utils::clip_grad_norm_(task.model->parameters(), kMaxNorm);
  task.optimizer.step();
}

void compare(Context& context, bool clip) {
  Task bare;
  Task ours;
  TrainingStep step(ours.optimizer, {.clip = clip ? clip::norm(kMaxNorm) : clip::none()});
  const std::vector<Contender> contenders = {
      timed("TrainingStep", [&] { step([&] { return ours.loss(); }); }),
      timed("bare loop", [&] { bare_step(bare, clip); })};
  const auto seconds = interleave(contenders, Sampling::of(context));
  context.report({.part = clip ? "clipped" : "plain",
                  .setting = "784-64-10 classifier, batch 32, float32, SGD",
                  .baseline = clip ? "the bare loop with torch::nn::utils::clip_grad_norm_"
                                   : "the bare loop: zero_grad, forward, backward, step",
                  .measured = ratio(seconds[0], seconds[1]),
                  .bar = 1.10,
                  .note = absolute_times(contenders, seconds)});
}

void measure(Context& context) {
  compare(context, false);
  compare(context, true);
}

const bool registered = add_claim({.name = "step_overhead",
                                   .group = "step",
                                   .promise = "TrainingStep costs little beside the bare loop",
                                   .measure = measure});

}  // namespace
}  // namespace torchlore::claims
