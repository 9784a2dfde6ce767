// The smallest mixed-precision loop: a multi-layer perceptron learns y = sin(x).
#include <torch/torch.h>

#include <iostream>
#include <string_view>
#include <torchlore/gradient/clip_grad.hpp>
#include <torchlore/precision/autocast.hpp>
#include <torchlore/precision/loss_scaler.hpp>

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  const int64_t steps = quick ? 50 : 2'000;
  const torch::Device device(torch::cuda::is_available() ? torch::kCUDA : torch::kCPU);

  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(1, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 1));
  model->to(device);
  torch::optim::AdamW optimizer(model->parameters(), 1e-2);
  torchlore::LossScaler scaler;

  for (int64_t step = 1; step <= steps; ++step) {
    const auto x = torch::rand({256, 1}, device) * 6 - 3;
    torch::Tensor loss;
    {
      torchlore::Autocast amp(device, torch::kHalf);
      loss = torch::mse_loss(model->forward(x), x.sin());
    }
    optimizer.zero_grad();
    scaler.scale(loss).backward();
    scaler.unscale_(optimizer);
    const auto norm = torchlore::clip_grad_norm_(model->parameters(), 1.0);
    scaler.step(optimizer);
    scaler.update();

    if (step % (steps / 10) == 0) {
      std::cout << "step " << step << "  loss " << loss.item<double>() << "  gradient norm "
                << norm.item<double>() << "  scale " << scaler.get_scale() << '\n';
    }
  }
}
