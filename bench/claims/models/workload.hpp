#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace torch::nn {
class Module;
}

/// Models of several kinds, written as their users write them, each with one batch: what the claims
/// about unmodified models are measured on.
namespace torchlore::models {

/// A model in training mode, float32 on the CPU, its weights and batch drawn from a fixed seed.
struct Workload {
  std::string name = {};     ///< for a line's `part`: "resnet18"
  std::string setting = {};  ///< "ResNet-18, batch 16x3x32x32"
  std::shared_ptr<torch::nn::Module> model = nullptr;
  /// One forward pass: a loss with a new graph. The caller runs backward.
  std::function<at::Tensor()> loss = nullptr;
  /// The same with every block in a `checkpoint`; nullptr for a model without blocks.
  std::function<at::Tensor()> checkpointed = nullptr;
};

/// With `small` each is cut down until a step takes milliseconds, for `--quick`.
Workload resnet18(bool small = false);
Workload gpt(bool small = false);
/// 24 encoder layers of width 128, 64 tokens, batch 8.
Workload transformer_d128(bool small = false);
/// 24 encoder layers of width 512, 512 tokens, batch 4.
Workload transformer_d512(bool small = false);
/// 6 layers of width 256, 64 tokens, batch 16.
Workload lstm(bool small = false);
/// One cell of width 256 over 64 time steps, batch 16.
Workload lstm_cell(bool small = false);

/// All of these, in this order.
std::vector<Workload> all_workloads(bool small = false);

}  // namespace torchlore::models
