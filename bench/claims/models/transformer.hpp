#pragma once

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/nn/pimpl.h>

namespace torchlore::models {

struct TransformerStackOptions {
  int64_t layers = 24;
  int64_t width = 128;
  int64_t heads = 4;
  int64_t feedforward = 512;
  double dropout = 0.1;
};

/// A stack of LibTorch's own encoder layers.
struct TransformerStackImpl : torch::nn::Module {
  explicit TransformerStackImpl(const TransformerStackOptions& o) {
    const auto layer = torch::nn::TransformerEncoderLayerOptions(o.width, o.heads)
                           .dim_feedforward(o.feedforward)
                           .dropout(o.dropout);
    for (int64_t i = 0; i < o.layers; ++i) {
      layers->push_back(torch::nn::TransformerEncoderLayer(layer));
    }
    register_module("layers", layers);
  }

  /// x [T, B, width] -> [T, B, width]
  at::Tensor forward(const at::Tensor& x) { return layers->forward(x); }

  torch::nn::Sequential layers;
};
TORCH_MODULE(TransformerStack);

}  // namespace torchlore::models
