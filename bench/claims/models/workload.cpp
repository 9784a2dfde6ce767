#include "workload.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <mutex>

#include "../../../examples/train_text/gpt.hpp"
#include "recurrent.hpp"
#include "resnet.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "transformer.hpp"

namespace torchlore::models {
namespace {

void seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(20260101);
}

/// Runs the modules one after the other, each in a checkpoint.
at::Tensor checkpoint_each(torch::nn::SequentialImpl& modules, at::Tensor x) {
  for (const auto& module : modules) {
    x = checkpoint([module = module](const at::Tensor& t) mutable { return module.forward(t); }, x);
  }
  return x;
}

/// The mean square of what a model makes of sequences.
template <typename Model>
Workload on_sequences(std::string name, const std::string& setting, Model model, int64_t tokens,
                      int64_t batch, int64_t width) {
  const auto x = at::randn({tokens, batch, width});
  return {
      .name = std::move(name),
      .setting = fmt::format("{}, width {}, {} tokens, batch {}", setting, width, tokens, batch),
      .model = model.ptr(),
      .loss = [model, x]() mutable { return model->forward(x).square().mean(); }};
}

Workload transformer(std::string name, const TransformerStackOptions& o, int64_t tokens,
                     int64_t batch) {
  seed();
  TransformerStack model(o);
  const auto x = at::randn({tokens, batch, o.width});
  return {.name = std::move(name),
          .setting = fmt::format("{} nn::TransformerEncoderLayer, width {}, {} tokens, batch {}",
                                 o.layers, o.width, tokens, batch),
          .model = model.ptr(),
          .loss = [model, x]() mutable { return model->forward(x).square().mean(); },
          .checkpointed =
              [model, x]() mutable { return checkpoint_each(*model->layers, x).square().mean(); }};
}

}  // namespace

Workload resnet18(bool small) {
  seed();
  ResNet18 model;
  const int64_t batch = small ? 2 : 16;
  const int64_t side = small ? 8 : 32;
  const auto x = at::randn({batch, 3, side, side});
  const auto y = at::randint(10, {batch});
  return {.name = "resnet18",
          .setting = fmt::format("ResNet-18, batch {0}x3x{1}x{1}", batch, side),
          .model = model.ptr(),
          .loss = [model, x, y]() mutable { return at::cross_entropy_loss(model->forward(x), y); },
          .checkpointed =
              [model, x, y]() mutable {
                const auto stem = model->relu(model->stem->forward(x));
                const auto features = model->pool(checkpoint_each(*model->blocks, stem));
                return at::cross_entropy_loss(model->head(features.flatten(1)), y);
              }};
}

Workload gpt(bool small) {
  seed();
  const text::GPTOptions options;
  text::GPT model(options);
  const int64_t batch = small ? 1 : 8;
  const int64_t tokens = small ? 16 : options.context;
  const auto ids = at::randint(options.vocabulary, {batch, tokens + 1});
  const auto x = ids.slice(1, 0, tokens);
  const auto y = ids.slice(1, 1).reshape({-1});
  return {
      .name = "gpt",
      .setting = fmt::format("the GPT of examples/train_text, batch {} x {} tokens", batch, tokens),
      .model = model.ptr(),
      .loss = [model, x,
               y]() mutable { return at::cross_entropy_loss(model->forward(x).flatten(0, 1), y); },
      .checkpointed =
          [model, x, y]() mutable {
            auto h = model->tokens(x) + model->positions(at::arange(x.size(1)));
            for (const auto& block : model->blocks) h = checkpoint(block, h);
            const auto logits = at::linear(model->last_norm(h), model->tokens->weight);
            return at::cross_entropy_loss(logits.flatten(0, 1), y);
          }};
}

Workload transformer_d128(bool small) {
  return transformer("transformer_d128",
                     {.layers = small ? 4 : 24, .width = 128, .heads = 4, .feedforward = 512},
                     small ? 8 : 64, small ? 2 : 8);
}

Workload transformer_d512(bool small) {
  return transformer("transformer_d512",
                     {.layers = small ? 2 : 24, .width = 512, .heads = 8, .feedforward = 2048},
                     small ? 8 : 512, small ? 1 : 4);
}

Workload lstm(bool small) {
  seed();
  const int64_t layers = small ? 2 : 6;
  return on_sequences("lstm", fmt::format("nn::LSTM, {} layers", layers), StackedLSTM(256, layers),
                      small ? 8 : 64, small ? 2 : 16, 256);
}

Workload lstm_cell(bool small) {
  seed();
  return on_sequences("lstm_cell", "a loop over nn::LSTMCell", LSTMCellLoop(256), small ? 8 : 64,
                      small ? 2 : 16, 256);
}

std::vector<Workload> all_workloads(bool small) {
  return {resnet18(small),         gpt(small),  transformer_d128(small),
          transformer_d512(small), lstm(small), lstm_cell(small)};
}

}  // namespace torchlore::models
