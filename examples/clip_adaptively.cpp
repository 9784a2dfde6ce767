// Five ways to clip the same job, by name: what a norm may be is decided by a constant, a schedule, the
// norms so far (AutoClip, ZClip) or the weights (AGC). Now and then a batch is a hundred times too large.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <string>
#include <torchlore/step.hpp>
#include <utility>
#include <vector>

namespace clip = torchlore::clip;

double train(const torchlore::Clip& how, int steps) {
  torch::manual_seed(1);
  torch::nn::Sequential model(torch::nn::Linear(8, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 1));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  torchlore::TrainingStep step(optimizer,
                               {.clip = how});  // its own copy, with a history of its own
  const auto batch = [&](double size) {
    const auto x = at::randn({32, 8});
    return at::mse_loss(model->forward(x) * size, x.slice(1, 0, 2).prod(1, true) * size);
  };
  for (int i = 1; i <= steps; ++i) {
    step([&] { return batch(i % 50 == 49 ? 100 : 1); });
  }
  double loss = 0;
  for (int i = 0; i < 20; ++i) loss += batch(1).item<double>() / 20;
  return loss;
}

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const int steps = quick ? 100 : 1'000;
  const std::vector<std::pair<std::string, torchlore::Clip>> ways = {
      {"not at all", clip::none()},
      {"norm 1", clip::norm(1.0)},
      {"norm from 2 to 0.2", clip::norm(clip::threshold::exponential(2.0, 0.2, steps))},
      {"AutoClip, percentile 50", clip::autoclip(50)},
      {"ZClip", clip::zclip()},
      {"AGC", clip::agc({.clipping = 0.05})}};
  for (const auto& [name, how] : ways) {
    std::printf("%-24s loss after %d steps: %.3g\n", name.c_str(), steps, train(how, steps));
  }
}
