// Fashion-MNIST, made private by one option of the step: accuracy and ε as they grow.
#include <ATen/core/grad_mode.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <cstring>
#include <torchlore/data/poisson_sampler.hpp>
#include <torchlore/optimizer/weight_average.hpp>
#include <torchlore/privacy/calibrate_noise.hpp>
#include <torchlore/step.hpp>

#include "models/fashion_mnist.hpp"

namespace nn = torch::nn;
namespace tl = torchlore;

/// 26,010 parameters and tanh: small and bounded, which suits clipping and noise.
nn::Sequential make_cnn() {
  const auto pool = [] { return nn::MaxPool2d(nn::MaxPool2dOptions(2).stride(1)); };
  return nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 16, 8).stride(2).padding(3)), nn::Tanh(),
                        pool(), nn::Conv2d(nn::Conv2dOptions(16, 32, 4).stride(2)), nn::Tanh(),
                        pool(), nn::Flatten(), nn::Linear(512, 32), nn::Tanh(), nn::Linear(32, 10));
}

double accuracy(nn::Sequential& model, const tl::models::Images& images) {
  const at::NoGradGuard no_grad;
  return (model->forward(images.x).argmax(1) == images.y).to(at::kFloat).mean().item<double>();
}

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  const int64_t examples = quick ? 2'000 : 60'000, epochs = quick ? 2 : 10;

  const double expected_batch = quick ? 200 : 1'000, delta = 1e-5;
  const auto data = tl::models::load_fashion_mnist(examples, quick ? 500 : 10'000);
  if (!data) {
    std::printf("%s: nothing to train on\n", tl::models::kFashionMnistMissing);
    return 0;
  }
  tl::PoissonSampler sampler(examples, {.expected_batch = expected_batch});
  const double sigma = tl::calibrate_noise({.epsilon = 3,
                                            .delta = delta,
                                            .sample_rate = sampler.sample_rate(),
                                            .steps = epochs * sampler.steps_per_pass()});
  at::manual_seed(1);
  auto model = make_cnn();
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(2.0).momentum(0.9));
  auto average = tl::WeightAverage::ema(*model, {.decay = 0.99});  // costs no privacy

  // The one option: everything else is as in any other loop.
  auto dp = tl::differentially_private(*model, {.noise_multiplier = sigma,
                                                .max_grad_norm = 0.1,
                                                .dataset_size = examples,
                                                .expected_batch = expected_batch});
  tl::TrainingStep step(optimizer, {.gradient = dp, .average = average});

  for (int64_t epoch = 1; epoch <= epochs; ++epoch) {
    for (auto& batch : sampler.batches(std::pair(data->train.x, data->train.y))) {
      step(batch, [&](const auto& part) {
        return nn::functional::cross_entropy(
            model->forward(part.first), part.second,
            nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
      });
    }
    const auto averaged = average.swap();
    std::printf("epoch %2d: accuracy %.1f %%, ε = %.2f at δ = %g\n", static_cast<int>(epoch),
                100 * accuracy(model, data->test), dp.epsilon(delta), delta);
  }
}
