#pragma once

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/distance.h>
#include <torch/nn/modules/fold.h>
#include <torch/nn/modules/padding.h>
#include <torch/nn/modules/pixelshuffle.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/modules/upsampling.h>

#include "intercept/coverage/module_case.hpp"

/// The modules of torch::nn without parameters: activations, pooling, padding, distances.
namespace torchlore::testing {

inline std::vector<ModuleCase> activation_modules() {
  using namespace torch::nn;
  const auto x = input({4, 6});
  return {
      plain_case<CELU>("CELU", x),
      plain_case<ELU>("ELU", x),
      plain_case<GELU>("GELU", x),
      plain_case<GLU>("GLU", x),
      plain_case<Hardshrink>("Hardshrink", x),
      plain_case<Hardtanh>("Hardtanh", x),
      plain_case<LeakyReLU>("LeakyReLU", x),
      plain_case<LogSigmoid>("LogSigmoid", x),
      module_case(
          "LogSoftmax", [] { return LogSoftmax(1); }, x),
      plain_case<Mish>("Mish", x),
      plain_case<ReLU>("ReLU", x),
      plain_case<ReLU6>("ReLU6", x),
      plain_case<RReLU>("RReLU", x),
      plain_case<SELU>("SELU", x),
      plain_case<SiLU>("SiLU", x),
      plain_case<Sigmoid>("Sigmoid", x),
      module_case(
          "Softmax", [] { return Softmax(1); }, x),
      plain_case<Softmax2d>("Softmax2d", input({2, 3, 4, 4})),
      module_case(
          "Softmin", [] { return Softmin(1); }, x),
      plain_case<Softplus>("Softplus", x),
      plain_case<Softshrink>("Softshrink", x),
      plain_case<Softsign>("Softsign", x),
      plain_case<Tanh>("Tanh", x),
      plain_case<Tanhshrink>("Tanhshrink", x),
      module_case(
          "Threshold", [] { return Threshold(0.1, 20); }, x),
  };
}

inline std::vector<ModuleCase> pooling_modules() {
  using namespace torch::nn;
  const auto x1 = input({2, 3, 6}), x2 = input({2, 3, 6, 6}), x3 = input({2, 3, 6, 6, 6});
  const auto even = [](at::IntArrayRef sizes) {  // where a pooling of 2 found its maxima
    return at::arange(0, 12, 2).expand(sizes).contiguous();
  };
  return {
      module_case(
          "AdaptiveAvgPool1d", [] { return AdaptiveAvgPool1d(2); }, x1),
      module_case(
          "AdaptiveAvgPool2d", [] { return AdaptiveAvgPool2d(2); }, x2),
      module_case(
          "AdaptiveAvgPool3d", [] { return AdaptiveAvgPool3d(2); }, x3),
      module_case(
          "AdaptiveMaxPool1d", [] { return AdaptiveMaxPool1d(2); }, x1),
      module_case(
          "AdaptiveMaxPool2d", [] { return AdaptiveMaxPool2d(2); }, x2),
      module_case(
          "AdaptiveMaxPool3d", [] { return AdaptiveMaxPool3d(2); }, x3),
      module_case(
          "AvgPool1d", [] { return AvgPool1d(2); }, x1),
      module_case(
          "AvgPool2d", [] { return AvgPool2d(2); }, x2),
      module_case(
          "AvgPool3d", [] { return AvgPool3d(2); }, x3),
      module_case(
          "FractionalMaxPool2d",
          [] { return FractionalMaxPool2d(FractionalMaxPool2dOptions(2).output_size(3)); }, x2),
      module_case(
          "FractionalMaxPool3d",
          [] { return FractionalMaxPool3d(FractionalMaxPool3dOptions(2).output_size(3)); }, x3),
      module_case(
          "LPPool1d", [] { return LPPool1d(2, 2); }, x1),
      module_case(
          "LPPool2d", [] { return LPPool2d(2, 2); }, x2),
      module_case(
          "LPPool3d", [] { return LPPool3d(2, 2); }, x3),
      module_case(
          "MaxPool1d", [] { return MaxPool1d(2); }, x1),
      module_case(
          "MaxPool2d", [] { return MaxPool2d(2); }, x2),
      module_case(
          "MaxPool3d", [] { return MaxPool3d(2); }, x3),
      module_case(
          "MaxUnpool1d", [] { return MaxUnpool1d(2); }, x1, even({2, 3, 6})),
      module_case(
          "MaxUnpool2d", [] { return MaxUnpool2d(2); }, x2, even({2, 3, 6, 6})),
      module_case(
          "MaxUnpool3d", [] { return MaxUnpool3d(2); }, x3, even({2, 3, 6, 6, 6})),
  };
}

inline std::vector<ModuleCase> padding_modules() {
  using namespace torch::nn;
  const auto x1 = input({2, 3, 6}), x2 = input({2, 3, 6, 6}), x3 = input({2, 3, 4, 4, 4});
  return {
      module_case(
          "ConstantPad1d", [] { return ConstantPad1d(1, 2.0); }, x1),
      module_case(
          "ConstantPad2d", [] { return ConstantPad2d(1, 2.0); }, x2),
      module_case(
          "ConstantPad3d", [] { return ConstantPad3d(1, 2.0); }, x3),
      module_case(
          "ReflectionPad1d", [] { return ReflectionPad1d(1); }, x1),
      module_case(
          "ReflectionPad2d", [] { return ReflectionPad2d(1); }, x2),
      module_case(
          "ReflectionPad3d", [] { return ReflectionPad3d(1); }, x3),
      module_case(
          "ReplicationPad1d", [] { return ReplicationPad1d(1); }, x1),
      module_case(
          "ReplicationPad2d", [] { return ReplicationPad2d(1); }, x2),
      module_case(
          "ReplicationPad3d", [] { return ReplicationPad3d(1); }, x3),
      module_case(
          "ZeroPad1d", [] { return ZeroPad1d(1); }, x1),
      module_case(
          "ZeroPad2d", [] { return ZeroPad2d(1); }, x2),
      module_case(
          "ZeroPad3d", [] { return ZeroPad3d(1); }, x3),
  };
}

inline std::vector<ModuleCase> shape_modules() {
  using namespace torch::nn;
  const auto bilinear = UpsampleOptions()
                            .scale_factor(std::vector<double>{2, 2})
                            .mode(torch::kBilinear)
                            .align_corners(false);
  const auto nearest =
      UpsampleOptions().scale_factor(std::vector<double>{2, 2}).mode(torch::kNearest);
  return {
      module_case(
          "PixelShuffle", [] { return PixelShuffle(2); }, input({2, 4, 3, 3})),
      module_case(
          "PixelUnshuffle", [] { return PixelUnshuffle(2); }, input({2, 3, 4, 4})),
      module_case(
          "Upsample (nearest)", [=] { return Upsample(nearest); }, input({2, 3, 4, 4})),
      module_case(
          "Upsample (bilinear)", [=] { return Upsample(bilinear); }, input({2, 3, 4, 4})),
      module_case(
          "Fold",
          [] {
            return Fold(FoldOptions({4, 4}, {2, 2}));
          },
          input({2, 12, 9})),
      module_case(
          "Unfold",
          [] {
            return Unfold(UnfoldOptions({2, 2}));
          },
          input({2, 3, 4, 4})),
      plain_case<CosineSimilarity>("CosineSimilarity", input({4, 3}), input({4, 3})),
      plain_case<PairwiseDistance>("PairwiseDistance", input({4, 3}), input({4, 3})),
  };
}

}  // namespace torchlore::testing
