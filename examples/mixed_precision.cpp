// Mixed precision by hand: the forward pass in float16, with a loss scaler that keeps small
// gradients above float16's smallest number. On bfloat16 leave the scaler out.

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include <cstdio>
#include <string>
#include <torchlore/core/device.hpp>
#include <torchlore/precision/autocast.hpp>
#include <torchlore/precision/loss_scaler.hpp>

int main(int argc, char** argv) {
  const int steps = argc > 1 && std::string(argv[1]) == "--quick" ? 20 : 400;
  const auto device = torchlore::default_device();
  torch::manual_seed(1);
  torch::nn::Sequential model(torch::nn::Linear(2, 64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 1));
  model->to(device);
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-2));
  const auto x = at::rand({256, 2}, device) * 2 - 1;
  const auto y = (x.prod(1, /*keepdim=*/true) > 0).to(at::kFloat);  // XOR of the signs

  torchlore::LossScaler scaler;
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    at::Tensor loss;
    {
      torchlore::Autocast amp(device, at::kHalf);
      loss = at::binary_cross_entropy_with_logits(model->forward(x).to(at::kFloat), y);
    }
    scaler.scale(loss).backward();
    scaler.step(optimizer);  // skipped when a gradient overflowed
    scaler.update();         // and the scale halved
    if ((step + 1) % (steps / 4) == 0) {
      std::printf("step %3d  loss %.4f  scale %.0f\n", step + 1, loss.item<double>(),
                  scaler.get_scale());
    }
  }
}
