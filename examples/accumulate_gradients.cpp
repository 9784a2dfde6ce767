// A large batch in small pieces, where pieces hold unlike numbers of examples. The mean of the
// pieces' means is not the mean of the batch; a window over sums and counts is.

#include <torch/nn/modules/linear.h>

#include <cstdio>
#include <torchlore/gradient/accumulator.hpp>
#include <torchlore/gradient/clip_grad.hpp>

int main() {  // --quick or not: it runs in no time
  torch::manual_seed(1);
  torch::nn::Linear model(16, 1);
  const auto x = at::randn({64, 16}), y = at::randn({64, 1});
  const auto loss_sum = [&](int64_t from, int64_t to) {
    return at::mse_loss(model->forward(x.slice(0, from, to)), y.slice(0, from, to),
                        at::Reduction::Sum);
  };

  (loss_sum(0, 64) / 64).backward();
  const auto whole = model->weight.grad().clone();
  model->zero_grad();

  torchlore::GradientAccumulator window(torchlore::Accumulate::batches(3));
  for (const auto& [from, to] : {std::pair{0, 40}, std::pair{40, 44}, std::pair{44, 64}}) {
    window.add(torchlore::Loss{loss_sum(from, to), to - from}).backward();
  }
  // The division by 64 and the clipping are one pass over the gradients.
  torchlore::clip_grad_norm_(*model, 10.0, {.divisor = window.divisor()});
  window.reset();

  const auto error = (model->weight.grad() - whole).abs().max().item<double>();
  std::printf("three pieces of 40, 4 and 20 against one batch of 64: largest difference %.1e\n",
              error);
  return error < 1e-6 ? 0 : 1;
}
