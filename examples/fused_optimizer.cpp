// One step of AdamW in one pass over memory: the same line as before, with another type.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <iostream>
#include <string_view>
#include <torchlore/gradient/clip_grad.hpp>
#include <torchlore/optimizer/fused_adamw.hpp>

namespace F = torch::nn::functional;

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  torch::nn::Sequential model(torch::nn::Linear(16, 256), torch::nn::ReLU(),
                              torch::nn::Linear(256, 1));

  // was: torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-2));
  torchlore::FusedAdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-2));

  const int steps = quick ? 20 : 300;
  for (int i = 0; i < steps; ++i) {
    const auto x = at::randn({64, 16});
    const auto loss = F::mse_loss(model->forward(x), x.pow(2).mean(1, /*keepdim=*/true));
    optimizer.zero_grad();
    loss.backward();
    torchlore::clip_grad_norm_(optimizer, 1.0);
    optimizer.step();
    if (i % 50 == 0 || i + 1 == steps) {
      std::cout << "step " << i << "  loss " << loss.item<double>() << '\n';
    }
  }
}
