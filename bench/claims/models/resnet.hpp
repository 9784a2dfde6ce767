#pragma once

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/pimpl.h>

namespace torchlore::models {

/// Two 3x3 convolutions, with the input added to what comes out of them.
struct BasicBlockImpl : torch::nn::Module {
  BasicBlockImpl(int64_t in, int64_t out, int64_t stride)
      : first(register_module("first", conv(in, out, 3, stride))),
        first_norm(register_module("first_norm", torch::nn::BatchNorm2d(out))),
        second(register_module("second", conv(out, out, 3, 1))),
        second_norm(register_module("second_norm", torch::nn::BatchNorm2d(out))),
        relu(register_module("relu", torch::nn::ReLU(torch::nn::ReLUOptions(/*inplace=*/true)))) {
    if (stride == 1 && in == out) return;
    shortcut = torch::nn::Sequential(conv(in, out, 1, stride), torch::nn::BatchNorm2d(out));
    register_module("shortcut", shortcut);
  }

  /// x [B, in, H, W] -> [B, out, H / stride, W / stride]
  at::Tensor forward(const at::Tensor& x) {
    auto y = second_norm(second(relu(first_norm(first(x)))));
    y += shortcut ? shortcut->forward(x) : x;
    return relu(y);
  }

  static torch::nn::Conv2d conv(int64_t in, int64_t out, int64_t kernel, int64_t stride) {
    return torch::nn::Conv2d(
        torch::nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
  }

  torch::nn::Conv2d first;
  torch::nn::BatchNorm2d first_norm;
  torch::nn::Conv2d second;
  torch::nn::BatchNorm2d second_norm;
  torch::nn::ReLU relu;
  torch::nn::Sequential shortcut{nullptr};
};
TORCH_MODULE(BasicBlock);

/// ResNet-18 for small pictures: a 3x3 stem without pooling. ReLU works in place.
/// Source: He et al. (2015), arXiv:1512.03385.
struct ResNet18Impl : torch::nn::Module {
  explicit ResNet18Impl(int64_t classes = 10)
      : stem(register_module("stem", torch::nn::Sequential(BasicBlockImpl::conv(3, 64, 3, 1),
                                                           torch::nn::BatchNorm2d(64)))),
        relu(register_module("relu", torch::nn::ReLU(torch::nn::ReLUOptions(/*inplace=*/true)))),
        pool(register_module("pool", torch::nn::AdaptiveAvgPool2d(1))),
        head(register_module("head", torch::nn::Linear(512, classes))) {
    for (const int64_t width : {64, 128, 256, 512}) {
      blocks->push_back(BasicBlock(width == 64 ? 64 : width / 2, width, width == 64 ? 1 : 2));
      blocks->push_back(BasicBlock(width, width, 1));
    }
    register_module("blocks", blocks);
  }

  /// x [B, 3, H, W] -> logits [B, classes]
  at::Tensor forward(const at::Tensor& x) {
    return head(pool(blocks->forward(relu(stem->forward(x)))).flatten(1));
  }

  torch::nn::Sequential stem;
  torch::nn::ReLU relu;
  torch::nn::Sequential blocks;
  torch::nn::AdaptiveAvgPool2d pool;
  torch::nn::Linear head;
};
TORCH_MODULE(ResNet18);

}  // namespace torchlore::models
