// Activation checkpointing: the same training step with and without, its peak memory, its time, and the
// loss, which is the same to the last bit.

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/optim/sgd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <torchlore/memory/checkpoint.hpp>
#include <torchlore/memory/memory_meter.hpp>
#include <vector>

namespace nn = torch::nn;

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  const int64_t length = quick ? 16 : 128;
  const int steps = quick ? 1 : 2;

  for (const bool checkpointed : {false, true}) {
    torch::manual_seed(1);
    std::vector<nn::TransformerEncoderLayer> blocks;
    std::vector<at::Tensor> parameters;
    for (int i = 0; i < 8; ++i) {
      blocks.emplace_back(nn::TransformerEncoderLayerOptions(128, 4).dim_feedforward(512));
      for (const auto& p : blocks.back()->parameters()) parameters.push_back(p);
    }
    torch::optim::SGD optimizer(parameters, 0.01);

    const torchlore::MemoryMeter meter;
    const auto start = std::chrono::steady_clock::now();
    double loss_value = 0;
    for (int step = 0; step < steps; ++step) {
      auto x = at::randn({length, 8, 128});
      for (auto& block : blocks) {
        x = checkpointed ? torchlore::checkpoint(block, x) : block->forward(x);
      }
      const auto loss = x.square().mean();
      optimizer.zero_grad();
      loss.backward();
      optimizer.step();
      loss_value = loss.item<double>();
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    std::printf("%-13s peak %8s  time %.2f s  loss %.9f\n", checkpointed ? "checkpointed" : "plain",
                torchlore::to_string(meter.peak()).c_str(), time.count(), loss_value);
  }
}
