// Learning rates over time: a schedule is a value made of parts, and knows nothing of optimizers. The step
// applies it, to the bias at half the rate of the weight; a plateau lowers the base rates below it.

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <torchlore/schedule/reduce_on_plateau.hpp>
#include <torchlore/step.hpp>

namespace tl = torchlore;

int main(int argc, char** argv) {
  const int64_t steps = argc > 1 && std::string(argv[1]) == "--quick" ? 50 : 500;
  const int64_t rise = steps / 10;
  const auto schedule =
      tl::schedule::warmup(rise).then(tl::schedule::wsd(steps - rise, {.decay = steps / 5}));

  torch::manual_seed(1);
  torch::nn::Linear model(8, 1);
  torch::optim::SGD optimizer(std::vector<at::Tensor>{model->weight},
                              torch::optim::SGDOptions(0.1));
  optimizer.add_param_group({{model->bias}, std::make_unique<torch::optim::SGDOptions>(0.05)});
  tl::TrainingStep step(optimizer, {.schedule = schedule});
  tl::ReduceOnPlateau plateau(*step.learning_rate(), {.factor = 0.5, .patience = 1});

  const auto truth = at::randn({8, 1});
  for (int64_t i = 0; i < steps; ++i) {
    const auto rates = step.learning_rate()->rates();
    const auto x = at::randn({16, 8});
    const auto y = x.mm(truth) + 0.5 * at::randn({16, 1});
    const double loss = step([&] { return at::mse_loss(model->forward(x), y); }).loss();
    if ((i + 1) % (steps / 10) != 0) continue;
    std::printf("step %3d  rates %.4f and %.4f  loss %.3f%s\n", static_cast<int>(i + 1), rates[0],
                rates[1], loss, plateau.step(loss) ? "  no better: rates halved" : "");
  }
}
