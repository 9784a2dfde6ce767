// A running average of the weights beats the last ones where steps are noisy. It is put into the model for
// evaluation only; training goes on with the weights of its own. Batch norm is measured anew for the average.

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <string>
#include <torchlore/optimizer/recalibrate_batch_norm.hpp>
#include <torchlore/optimizer/weight_average.hpp>
#include <utility>

/// A batch of a noisy task: whether the coordinates have the same sign; a tenth of the labels is wrong.
std::pair<at::Tensor, at::Tensor> batch(int64_t size) {
  const auto x = at::randn({size, 2});
  const auto wrong = at::rand({size}) < 0.1;
  return {x, ((x.prod(1) > 0) ^ wrong).to(at::kFloat)};
}

int main(int argc, char** argv) {
  const int steps = argc > 1 && std::string(argv[1]) == "--quick" ? 50 : 2000;
  torch::manual_seed(1);
  torch::nn::Sequential model(torch::nn::Linear(2, 32), torch::nn::BatchNorm1d(32),
                              torch::nn::ReLU(), torch::nn::Linear(32, 1));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(1.0));
  auto ema = torchlore::WeightAverage::ema(*model, {.decay = 0.99});

  const auto [held_out, answers] = batch(4096);
  const auto held_out_loss = [&, x = held_out, y = answers] {
    const at::NoGradGuard no_grad;
    model->eval();
    const auto loss = at::binary_cross_entropy_with_logits(model->forward(x).squeeze(1), y);
    model->train();
    return loss.item<double>();
  };
  for (int step = 1; step <= steps; ++step) {
    const auto [x, y] = batch(16);
    optimizer.zero_grad();
    at::binary_cross_entropy_with_logits(model->forward(x).squeeze(1), y).backward();
    optimizer.step();
    ema.update();
    if (step % (steps / 5) != 0) continue;
    const double own = held_out_loss();
    const auto averaged = ema.swap();  // until the end of this round
    torchlore::recalibrate_batch_norm(*model, [&] {
      for (int i = 0; i < 20; ++i) model->forward(batch(128).first);
    });
    std::printf("step %4d  held-out loss %.3f, of the average %.3f\n", step, own, held_out_loss());
  }
}
