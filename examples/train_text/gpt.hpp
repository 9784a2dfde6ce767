#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cmath>
#include <string>
#include <vector>

/// A small GPT as anybody would write it in LibTorch. It knows nothing of torchlore.
namespace text {

struct GPTOptions {
  int64_t vocabulary = 256;
  int64_t context = 128;
  int64_t layers = 4;
  int64_t width = 256;
  int64_t heads = 4;
};

/// One pre-norm block: attention, then a two-layer perceptron four times as wide.
struct BlockImpl : torch::nn::Module {
  BlockImpl(int64_t width, int64_t head_count)
      : heads(head_count),
        attention_norm(register_module("attention_norm", norm(width))),
        qkv(register_module("qkv", linear(width, 3 * width))),
        attention_out(register_module("attention_out", linear(width, width))),
        mlp_norm(register_module("mlp_norm", norm(width))),
        up(register_module("up", linear(width, 4 * width))),
        down(register_module("down", linear(4 * width, width))) {}

  /// x [B, T, C] -> [B, T, C]
  at::Tensor forward(at::Tensor x) {
    x = x + attention_out(attention(attention_norm(x)));
    return x + down(at::gelu(up(mlp_norm(x)), "tanh"));
  }

  at::Tensor attention(const at::Tensor& x) {
    const auto batch = x.size(0), length = x.size(1), width = x.size(2);
    const auto parts =
        qkv(x).view({batch, length, 3, heads, width / heads}).permute({2, 0, 3, 1, 4});
    const auto y = at::scaled_dot_product_attention(parts[0], parts[1], parts[2],
                                                    /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                                    /*is_causal=*/true);
    return y.transpose(1, 2).reshape({batch, length, width});
  }

  static torch::nn::Linear linear(int64_t in, int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  }
  static torch::nn::LayerNorm norm(int64_t width) {
    return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width}));
  }

  int64_t heads;
  torch::nn::LayerNorm attention_norm;
  torch::nn::Linear qkv, attention_out;
  torch::nn::LayerNorm mlp_norm;
  torch::nn::Linear up, down;
};
TORCH_MODULE(Block);

/// Token and position embeddings, blocks, a last norm; the head shares the token embedding's
/// weight.
struct GPTImpl : torch::nn::Module {
  explicit GPTImpl(const GPTOptions& o)
      : tokens(register_module("tokens", torch::nn::Embedding(o.vocabulary, o.width))),
        positions(register_module("positions", torch::nn::Embedding(o.context, o.width))),
        last_norm(register_module("last_norm", Block::ContainedType::norm(o.width))) {
    for (int64_t i = 0; i < o.layers; ++i) {
      blocks.push_back(register_module("block" + std::to_string(i), Block(o.width, o.heads)));
    }
    initialize();
  }

  /// Token ids [B, T] int64 -> logits [B, T, vocabulary]
  at::Tensor forward(const at::Tensor& ids) {
    const auto places = at::arange(ids.size(1), ids.options());
    auto x = tokens(ids) + positions(places);
    for (auto& block : blocks) x = block(x);
    return at::linear(last_norm(x), tokens->weight);
  }

  /// Normal(0, 0.02), and less where 2 x layers branches add up in the residual stream.
  void initialize() {
    const double branches = std::sqrt(2.0 * static_cast<double>(blocks.size()));
    torch::nn::init::normal_(tokens->weight, 0.0, 0.02);
    torch::nn::init::normal_(positions->weight, 0.0, 0.02);
    for (auto& block : blocks) {
      torch::nn::init::normal_(block->qkv->weight, 0.0, 0.02);
      torch::nn::init::normal_(block->up->weight, 0.0, 0.02);
      torch::nn::init::normal_(block->attention_out->weight, 0.0, 0.02 / branches);
      torch::nn::init::normal_(block->down->weight, 0.0, 0.02 / branches);
    }
  }

  torch::nn::Embedding tokens, positions;
  std::vector<Block> blocks;
  torch::nn::LayerNorm last_norm;
};
TORCH_MODULE(GPT);

}  // namespace text
