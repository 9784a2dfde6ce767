#pragma once

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/modules/transformer.h>
#include <torch/nn/modules/transformercoder.h>
#include <torch/nn/modules/transformerlayer.h>

#include "intercept/coverage/module_case.hpp"

/// The modules of torch::nn that hold parameters or drop out.
namespace torchlore::testing {

inline at::Tensor row_indices() {
  return at::tensor(std::vector<int64_t>{1, 3, 1, 0, 4, 2}).view({2, 3});
}

inline std::vector<ModuleCase> linear_modules() {
  using namespace torch::nn;
  return {
      module_case(
          "Linear", [] { return Linear(3, 4); }, input({5, 3})),
      module_case(
          "Linear (3-D input)", [] { return Linear(3, 4); }, input({2, 5, 3})),
      module_case(
          "Linear (no bias)", [] { return Linear(LinearOptions(3, 4).bias(false)); },
          input({5, 3})),
      module_case(
          "Bilinear", [] { return Bilinear(3, 2, 4); }, input({5, 3}), input({5, 2})),
      plain_case<Identity>("Identity", input({2, 3})),
      plain_case<Flatten>("Flatten", input({2, 3, 4})),
      module_case(
          "Unflatten",
          [] {
            return Unflatten(UnflattenOptions(1, {2, 3}));
          },
          input({2, 6})),
      module_case(
          "Embedding", [] { return Embedding(5, 3); }, row_indices()),
      module_case(
          "EmbeddingBag", [] { return EmbeddingBag(5, 3); }, row_indices()),
      plain_case<PReLU>("PReLU", input({2, 3})),
  };
}

inline std::vector<ModuleCase> convolution_modules() {
  using namespace torch::nn;
  const auto reflect = Conv2dOptions(3, 4, 3).padding(1).padding_mode(torch::kReflect);
  const auto replicate = Conv2dOptions(3, 4, 3).padding(1).padding_mode(torch::kReplicate);
  const auto circular = Conv2dOptions(3, 4, 3).padding(1).padding_mode(torch::kCircular);
  const auto conv2 = [](std::string name, const Conv2dOptions& options) {
    return module_case(
        std::move(name), [=] { return Conv2d(options); }, input({2, 3, 6, 6}));
  };
  return {
      module_case(
          "Conv1d", [] { return Conv1d(3, 4, 3); }, input({2, 3, 6})),
      conv2("Conv2d", Conv2dOptions(3, 4, 3)),
      conv2("Conv2d (groups)", Conv2dOptions(3, 3, 3).groups(3)),
      conv2("Conv2d (padding same)", Conv2dOptions(3, 4, 3).padding(torch::kSame)),
      conv2("Conv2d (padding_mode reflect)", reflect),
      conv2("Conv2d (padding_mode replicate)", replicate),
      conv2("Conv2d (padding_mode circular)", circular),
      module_case(
          "Conv3d", [] { return Conv3d(3, 4, 3); }, input({2, 3, 4, 4, 4})),
      module_case(
          "ConvTranspose1d", [] { return ConvTranspose1d(3, 4, 3); }, input({2, 3, 6})),
      module_case(
          "ConvTranspose2d", [] { return ConvTranspose2d(3, 4, 3); }, input({2, 3, 6, 6})),
      module_case(
          "ConvTranspose3d", [] { return ConvTranspose3d(3, 4, 3); }, input({2, 3, 4, 4, 4})),
  };
}

inline std::vector<ModuleCase> norm_modules() {
  using namespace torch::nn;
  return {
      module_case(
          "BatchNorm1d", [] { return BatchNorm1d(3); }, input({4, 3})),
      module_case(
          "BatchNorm2d", [] { return BatchNorm2d(3); }, input({2, 3, 4, 4})),
      module_case(
          "BatchNorm3d", [] { return BatchNorm3d(3); }, input({2, 3, 2, 2, 2})),
      module_case(
          "InstanceNorm1d", [] { return InstanceNorm1d(InstanceNorm1dOptions(3).affine(true)); },
          input({2, 3, 5})),
      module_case(
          "InstanceNorm2d", [] { return InstanceNorm2d(InstanceNorm2dOptions(3).affine(true)); },
          input({2, 3, 4, 4})),
      module_case(
          "InstanceNorm3d", [] { return InstanceNorm3d(InstanceNorm3dOptions(3).affine(true)); },
          input({2, 3, 2, 2, 2})),
      module_case(
          "LayerNorm", [] { return LayerNorm(LayerNormOptions({3})); }, input({4, 3})),
      module_case(
          "GroupNorm", [] { return GroupNorm(2, 4); }, input({2, 4, 5})),
      module_case(
          "LocalResponseNorm", [] { return LocalResponseNorm(2); }, input({2, 4, 5})),
      module_case(
          "CrossMapLRN2d", [] { return CrossMapLRN2d(3); }, input({2, 4, 5, 5})),
  };
}

inline std::vector<ModuleCase> recurrent_modules() {
  using namespace torch::nn;
  const auto series = input({4, 2, 3});
  return {
      module_case(
          "RNN", [] { return RNN(3, 2); }, series),
      module_case(
          "LSTM", [] { return LSTM(3, 2); }, series),
      module_case(
          "LSTM (proj_size)", [] { return LSTM(LSTMOptions(3, 4).proj_size(2)); }, series),
      module_case(
          "GRU", [] { return GRU(3, 2); }, series),
      module_case(
          "RNNCell", [] { return RNNCell(3, 2); }, input({2, 3})),
      module_case(
          "LSTMCell", [] { return LSTMCell(3, 2); }, input({2, 3})),
      module_case(
          "GRUCell", [] { return GRUCell(3, 2); }, input({2, 3})),
  };
}

inline std::vector<ModuleCase> transformer_modules() {
  using namespace torch::nn;
  const auto x = input({3, 2, 4}), y = input({3, 2, 4}), z = input({3, 2, 4});
  const auto encoder_layer = [] {
    return TransformerEncoderLayer(TransformerEncoderLayerOptions(4, 2).dim_feedforward(3));
  };
  const auto decoder_layer = [] {
    return TransformerDecoderLayer(TransformerDecoderLayerOptions(4, 2).dim_feedforward(3));
  };
  return {
      module_case(
          "MultiheadAttention", [] { return MultiheadAttention(4, 2); }, x, y, z),
      module_case("TransformerEncoderLayer", encoder_layer, x),
      module_case("TransformerDecoderLayer", decoder_layer, x, y),
      module_case(
          "TransformerEncoder", [=] { return TransformerEncoder(encoder_layer(), 2); }, x),
      module_case(
          "TransformerDecoder", [=] { return TransformerDecoder(decoder_layer(), 2); }, x, y),
      module_case(
          "Transformer",
          [] { return Transformer(TransformerOptions(4, 2, 1, 1).dim_feedforward(3)); }, x, y),
  };
}

inline std::vector<ModuleCase> dropout_modules() {
  using namespace torch::nn;
  return {
      plain_case<Dropout>("Dropout", input({4, 3})),
      plain_case<Dropout2d>("Dropout2d", input({2, 3, 4, 4})),
      plain_case<Dropout3d>("Dropout3d", input({2, 3, 2, 2, 2})),
      plain_case<AlphaDropout>("AlphaDropout", input({4, 3})),
      plain_case<FeatureAlphaDropout>("FeatureAlphaDropout", input({2, 3, 4, 4})),
  };
}

}  // namespace torchlore::testing
