// Clipping by norm, where it is needed: a recurrent network that starts as the identity remembers
// over 50 steps, and its gradients explode. One pass over all gradients a step; the norm comes to the
// host only where it is printed.

#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <string>
#include <torchlore/gradient/clip_grad.hpp>

int main(int argc, char** argv) {
  const int steps = argc > 1 && std::string(argv[1]) == "--quick" ? 10 : 100;
  torch::manual_seed(1);
  torch::nn::RNN rnn(torch::nn::RNNOptions(1, 32).batch_first(true).nonlinearity(torch::kReLU));
  {
    const at::NoGradGuard no_grad;  // Le et al. (2015), arXiv:1504.00941
    rnn->named_parameters()["weight_hh_l0"].copy_(at::eye(32));
  }
  torch::nn::Linear head(32, 1);
  auto parameters = rnn->parameters();
  for (const auto& p : head->parameters()) parameters.push_back(p);
  torch::optim::SGD optimizer(parameters, torch::optim::SGDOptions(0.02));

  auto largest = at::zeros({});
  for (int step = 0; step < steps; ++step) {
    const auto x = at::randn({32, 50, 1});
    const auto y = x.slice(1, 0, 5).sum(1);  // the sum of the first five, 45 steps later
    optimizer.zero_grad();
    const auto [states, last] = rnn->forward(x);
    const auto loss = at::mse_loss(head->forward(states.select(1, -1)), y);
    loss.backward();
    largest = at::maximum(largest, torchlore::clip_grad_norm_(parameters, 1.0));
    optimizer.step();
    if ((step + 1) % (steps / 5) == 0) {
      std::printf("step %3d  loss %6.3f  largest norm before clipping %.1f\n", step + 1,
                  loss.item<double>(), largest.item<double>());
      largest.zero_();
    }
  }
}
