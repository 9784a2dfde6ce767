// A run that meets what ends runs: a batch of garbage, and a few steps with a learning rate a thousand
// times too high. The spike guard skips the first and takes the others back.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <string>
#include <torchlore/step.hpp>

double train(bool guarded, int steps) {
  torch::manual_seed(2);
  torch::nn::Sequential model(torch::nn::Linear(4, 32), torch::nn::BatchNorm1d(32),
                              torch::nn::Tanh(), torch::nn::Linear(32, 1));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  torchlore::TrainingStepOptions options;
  if (guarded) {
    options.spike = torchlore::SpikeGuardOptions{
        .model = &*model,  // for batch norm's running statistics
        .on_spike = [](const torchlore::SpikeVerdict& spike) {
          std::printf("  step %3d  loss %9.3g  %s: %s\n", static_cast<int>(spike.step), spike.loss,
                      torchlore::to_string(spike.reason), torchlore::to_string(spike.action));
        }};
  }
  torchlore::TrainingStep step(optimizer, options);
  auto& group = optimizer.param_groups()[0].options();
  const double rate = group.get_lr();
  const auto batch = [&](double garbage) {
    const auto x = at::randn({32, 4});
    const auto y = x.sin().sum(1, true) + 0.1 * at::randn({32, 1});
    return at::mse_loss(model->forward(x * garbage), y * garbage);
  };
  for (int i = 0; i < steps; ++i) {
    if (i == steps / 2) group.set_lr(1000 * rate);
    if (i == steps / 2 + 4 && !guarded) group.set_lr(rate);  // the guard puts it back by itself
    step([&] { return batch(i == steps / 4 ? 1e6 : 1); });
  }
  model->eval();
  return batch(1).item<double>();
}

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const int steps = quick ? 200 : 800;
  std::printf("without a guard:\n  final loss %.3g\n", train(false, steps));
  std::printf("with a guard:\n");
  std::printf("  final loss %.3g\n", train(true, steps));
}
