#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "torchlore/memory/checkpoint.hpp"
#include "transformer.hpp"

/// A stack of encoder layers, each checkpointed or not: what the claims on checkpointing measure.
namespace torchlore::models {

/// Sizes, as the command line of bench/peers/checkpoint.py and of the worker takes them.
struct CheckpointSizes {
  int64_t layers = 24;
  int64_t width = 512;
  int64_t heads = 8;
  int64_t feedforward = 2048;
  int64_t length = 512;
  int64_t batch = 4;

  static CheckpointSizes of(bool quick) {
    return quick ? CheckpointSizes{3, 32, 2, 64, 16, 2} : CheckpointSizes{};
  }
  std::vector<std::string> arguments() const {
    std::vector<std::string> all;
    const auto add = [&](const char* name, int64_t value) {
      all.insert(all.end(), {name, std::to_string(value)});
    };
    add("--layers", layers), add("--width", width), add("--heads", heads);
    add("--feedforward", feedforward), add("--length", length), add("--batch", batch);
    return all;
  }
};

/// One training step's forward and backward pass; gradients are made anew.
inline void checkpoint_step(TransformerStack& model, const at::Tensor& input, bool checkpointed) {
  model->zero_grad();
  auto x = input;
  for (auto& layer : *model->layers) {
    x = checkpointed ? checkpoint(layer, x) : layer.forward(x);
  }
  x.square().mean().backward();
}

}  // namespace torchlore::models
