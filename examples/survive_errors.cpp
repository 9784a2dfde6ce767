// A training that goes on when something fails for a reason that passes: here a neighbour takes the
// memory now and then. It ends where the undisturbed training ends, bit for bit.

#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/convert_parameters.h>
#include <torch/optim/adamw.h>

#include <torchlore/step.hpp>

namespace nn = torch::nn;
namespace tl = torchlore;

/// Fails at every third call.
void neighbour(int64_t& calls) {
  if (++calls % 3 == 0) C10_THROW_ERROR(OutOfMemoryError, "a neighbour has taken the memory");
}

at::Tensor train(bool disturbed) {
  at::manual_seed(1);
  nn::Sequential model(nn::Linear(16, 32), nn::BatchNorm1d(32), nn::Dropout(0.1),
                       nn::Linear(32, 2));
  torch::optim::AdamW optimizer(model->parameters());

  tl::RetryOptions retry{.first_wait = std::chrono::milliseconds(1),
                         .model = &*model,  // the running statistics go back too
                         .on_failure = [](const tl::FailedAttempt& failed) {
                           fmt::print("attempt {}: {} ({}), again in {:.4f} s\n", failed.attempt,
                                      failed.error, tl::to_string(failed.kind),
                                      failed.wait.count());
                         }};
  tl::TrainingStep step(optimizer, {.retry = retry});
  int64_t calls = 0;
  for (int i = 0; i < 6; ++i) {
    const auto x = at::randn({8, 16});
    const auto y = (x.select(1, 0) > 0).to(at::kLong);
    step([&] {
      auto loss = nn::functional::cross_entropy(model->forward(x), y);
      if (disturbed) neighbour(calls);  // after batch norm and dropout have left their traces
      return loss;
    });
  }
  return nn::utils::parameters_to_vector(model->parameters()).detach();
}

int main() {
  const bool same = train(true).equal(train(false));
  fmt::print("The weights are {}.\n", same ? "the same, bit for bit" : "NOT the same");
  return same ? 0 : 1;
}
