#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace torch::nn {
class Module;
}

/// The networks that private training is measured on, each with one batch.
namespace torchlore::models {

/// A classifier with ten classes in training mode, float32 on the CPU, all drawn from a fixed seed.
struct PrivateTask {
  std::string name = {};     ///< for a line's `part`, and what bench/peers/opacus.py calls it
  std::string setting = {};  ///< sizes
  std::shared_ptr<torch::nn::Module> model = nullptr;
  int64_t batch = 0;
  /// The loss of each example [B], by a new forward pass.
  std::function<at::Tensor()> losses = nullptr;
  /// Their mean, as plain training computes it.
  std::function<at::Tensor()> loss = nullptr;
};

/// 784-512-512-10 with ReLU, batch 256.
PrivateTask private_mlp(bool small = false);
/// Two 3x3 convolutions of 32 and 64 channels, pooling and a linear layer; batch 256 of 28x28.
PrivateTask private_cnn(bool group_norm, bool small = false);
/// Two nn::TransformerEncoderLayer of width 128 over 128 tokens, batch 32.
PrivateTask private_transformer(bool small = false);

/// All four, in this order; with `small` each is cut down until a step takes milliseconds.
std::vector<PrivateTask> private_tasks(bool small = false);

}  // namespace torchlore::models
