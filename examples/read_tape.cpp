// What a forward pass did, read from an unmodified model: which op used which parameter, behind which
// views, and what it saved. Then a layer's weight gradient without backward, from its saved input and
// the gradient of its output.

#include <ATen/Functions.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <iostream>
#include <torchlore/intercept/tape.hpp>

namespace nn = torch::nn;

/// "addmm (AddmmBackward0) as mat2 through TBackward0" and so on.
void print_use(const torchlore::Tape& tape, const torchlore::TapeUse& use) {
  const auto& node = tape.node(use.node);
  std::cout << to_string(node.op) << " (" << node.name << ") as "
            << node.inputs[static_cast<size_t>(use.input)].name;
  for (const int64_t view : tape.path(use)) std::cout << " through " << tape.node(view).name;
  for (const auto& saved : node.saved)
    std::cout << ", saved " << saved.name << saved.tensor.sizes();
}

int main() {  // quick as it is: --quick changes nothing
  at::manual_seed(1);
  nn::Sequential model(nn::Conv2d(1, 4, 3), nn::GroupNorm(2, 4), nn::ReLU(), nn::Flatten(),
                       nn::Linear(4 * 6 * 6, 3));
  const auto x = at::randn({8, 1, 8, 8});
  const auto labels = at::randint(3, {8});
  const auto loss = at::cross_entropy_loss(model->forward(x), labels);

  const auto tape = torchlore::Tape::of(loss, *model);
  for (const auto& parameter : tape.parameters()) {
    for (const auto& use : parameter.uses) {
      std::cout << parameter.name << ": ";
      print_use(tape, use);
      std::cout << '\n';
    }
  }

  const auto& head = tape.node(tape.parameter("4.weight").uses.at(0).node);
  const auto gradient = tape.output_gradients({{head.index}})[0];
  const auto weight_gradient = gradient.t().mm(head.saved_tensor("mat1"));
  loss.backward();
  std::cout
      << "the head's weight gradient, largest difference to backward's: "
      << (weight_gradient - model->named_parameters()["4.weight"].grad()).abs().max().item<double>()
      << '\n';
}
