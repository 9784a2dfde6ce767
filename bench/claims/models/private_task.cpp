#include "private_task.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/modules/transformerlayer.h>

#include <mutex>
#include <utility>

namespace torchlore::models {
namespace {

constexpr int64_t kClasses = 10;

void seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(20260101);
}

template <typename Model>
PrivateTask task_of(std::string name, std::string setting, Model model, at::Tensor x,
                    int64_t batch) {
  const auto y = at::randint(kClasses, {batch});
  return {.name = std::move(name),
          .setting = std::move(setting),
          .model = model.ptr(),
          .batch = batch,
          .losses =
              [model, x, y]() mutable {
                return at::cross_entropy_loss(model->forward(x), y, {}, at::Reduction::None);
              },
          .loss = [model, x, y]() mutable { return at::cross_entropy_loss(model->forward(x), y); }};
}

/// Tokens, fixed positions, encoder layers, and a linear layer on the mean over the tokens.
struct ClassifierImpl : torch::nn::Module {
  static constexpr int64_t kVocabulary = 1000;

  ClassifierImpl(int64_t width, int64_t tokens)
      : embedding(register_module("embedding", torch::nn::Embedding(kVocabulary, width))),
        positions(register_buffer("positions", 0.02 * at::randn({tokens, 1, width}))),
        head(register_module("head", torch::nn::Linear(width, kClasses))) {
    const auto layer = torch::nn::TransformerEncoderLayerOptions(width, 4)
                           .dim_feedforward(4 * width)
                           .dropout(0.0);
    for (int i = 0; i < 2; ++i) layers->push_back(torch::nn::TransformerEncoderLayer(layer));
    register_module("layers", layers);
  }

  /// tokens [T, B] -> [B, classes]
  at::Tensor forward(const at::Tensor& tokens) {
    return head(layers->forward(embedding(tokens) + positions).mean(0));
  }

  torch::nn::Embedding embedding;
  at::Tensor positions;
  torch::nn::Sequential layers;
  torch::nn::Linear head;
};
TORCH_MODULE(Classifier);

}  // namespace

PrivateTask private_mlp(bool small) {
  seed();
  const int64_t width = small ? 32 : 512;
  const int64_t batch = small ? 8 : 256;
  torch::nn::Sequential model(torch::nn::Linear(784, width), torch::nn::ReLU(),
                              torch::nn::Linear(width, width), torch::nn::ReLU(),
                              torch::nn::Linear(width, kClasses));
  return task_of("mlp", fmt::format("784-{0}-{0}-{1}, ReLU, batch {2}", width, kClasses, batch),
                 model, at::randn({batch, 784}), batch);
}

PrivateTask private_cnn(bool group_norm, bool small) {
  seed();
  const int64_t batch = small ? 4 : 256;
  constexpr int64_t side = 28;
  torch::nn::Sequential model;
  int64_t in = 1;
  for (const int64_t out : {32, 64}) {
    model->push_back(torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, 3).padding(1)));
    if (group_norm) model->push_back(torch::nn::GroupNorm(8, out));
    model->push_back(torch::nn::ReLU());
    in = out;
  }
  model->push_back(torch::nn::MaxPool2d(2));
  model->push_back(torch::nn::Flatten());
  model->push_back(torch::nn::Linear(in * (side / 2) * (side / 2), kClasses));
  return task_of(group_norm ? "cnn_group_norm" : "cnn",
                 fmt::format("3x3 convolutions of 32 and 64 channels{}, pooling, linear; {}x28x28",
                             group_norm ? " with group norm" : "", batch),
                 model, at::randn({batch, 1, side, side}), batch);
}

PrivateTask private_transformer(bool small) {
  seed();
  const int64_t width = small ? 16 : 128;
  const int64_t tokens = small ? 8 : 128;
  const int64_t batch = small ? 4 : 32;
  return task_of("transformer",
                 fmt::format("2 nn::TransformerEncoderLayer, width {}, 4 heads, feed-forward {}, "
                             "{} tokens, batch {}",
                             width, 4 * width, tokens, batch),
                 Classifier(width, tokens),
                 at::randint(ClassifierImpl::kVocabulary, {tokens, batch}), batch);
}

std::vector<PrivateTask> private_tasks(bool small) {
  return {private_mlp(small), private_cnn(false, small), private_cnn(true, small),
          private_transformer(small)};
}

}  // namespace torchlore::models
