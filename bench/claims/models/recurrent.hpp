#pragma once

#include <ATen/ops/stack.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/pimpl.h>

#include <tuple>
#include <vector>

namespace torchlore::models {

/// An nn::LSTM, of which only the outputs are used.
struct StackedLSTMImpl : torch::nn::Module {
  StackedLSTMImpl(int64_t width, int64_t layers)
      : lstm(register_module(
            "lstm", torch::nn::LSTM(torch::nn::LSTMOptions(width, width).num_layers(layers)))) {}

  /// x [T, B, width] -> [T, B, width]
  at::Tensor forward(const at::Tensor& x) { return std::get<0>(lstm(x)); }

  torch::nn::LSTM lstm;
};
TORCH_MODULE(StackedLSTM);

/// An nn::LSTMCell applied to one time step after the other: many small ops.
struct LSTMCellLoopImpl : torch::nn::Module {
  explicit LSTMCellLoopImpl(int64_t width)
      : cell(register_module("cell", torch::nn::LSTMCell(width, width))) {}

  /// x [T, B, width] -> [T, B, width]
  at::Tensor forward(const at::Tensor& x) {
    std::vector<at::Tensor> outputs;
    std::tuple<at::Tensor, at::Tensor> state{x.new_zeros(x[0].sizes()), x.new_zeros(x[0].sizes())};
    for (int64_t t = 0; t < x.size(0); ++t) {
      state = cell(x[t], state);
      outputs.push_back(std::get<0>(state));
    }
    return at::stack(outputs);
  }

  torch::nn::LSTMCell cell;
};
TORCH_MODULE(LSTMCellLoop);

}  // namespace torchlore::models
