#pragma once

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Device.h>
#include <torch/nn/init.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <optional>
#include <string>
#include <torchlore/attention/sparse_attention_scope.hpp>
#include <vector>

#include "../train_text/corpus.hpp"
#include "../train_text/gpt.hpp"
#include "../train_text/run.hpp"

/// Real text with a key hidden far back in it, and a small GPT that has to find the key.
namespace long_context {

namespace tl = torchlore;

// Tokens: the bytes of the text, one marker for each value of the key, and the question.
constexpr int64_t kValues = 8;
constexpr int64_t kMarker = 256;
constexpr int64_t kQuestion = kMarker + kValues;
constexpr int64_t kVocabulary = kQuestion + 8;

/// Windows of text. Somewhere in the first quarter of each stands a marker; in the second half there are
/// questions, whose answer is the marker's value. No answer stands in the text: each must be found
/// from the marker.
struct Batch {
  at::Tensor input;   ///< [B, T] int64
  at::Tensor target;  ///< [B, T] int64: the next token of each
  at::Tensor recall;  ///< [B, T] bool: the target is an answer
  at::Tensor text;    ///< [B, T] bool: the target is a byte of the text
};

/// A fixed function of its arguments.
inline Batch make_batch(const std::string& bytes, int64_t length, int64_t count, uint64_t seed) {
  uint64_t state = seed;
  const auto draw = [&state](int64_t below) {
    state = text::mix(state);
    return static_cast<int64_t>(state % static_cast<uint64_t>(below));
  };
  std::vector<size_t> starts;
  for (int64_t i = 0; i < count; ++i) {
    starts.push_back(static_cast<size_t>(draw(static_cast<int64_t>(bytes.size()) - length)));
  }
  Batch batch;
  const auto plain = text::windows(bytes, starts, length, at::kCPU);
  auto ids = at::zeros({count, length + 1}, at::kLong);
  ids.narrow(1, 0, length).copy_(plain.input);
  ids.select(1, length).copy_(plain.target.select(1, length - 1));
  batch.recall = at::zeros({count, length}, at::kBool);
  auto token = ids.accessor<int64_t, 2>();
  auto answer = batch.recall.accessor<bool, 2>();
  std::vector<int64_t> values;
  for (int64_t b = 0; b < count; ++b) {
    values.push_back(draw(kValues));
    token[b][draw(std::max<int64_t>(length / 4, 1))] = kMarker + values.back();
    for (int64_t place = length / 2; place + 1 < length; place += 4 + draw(12)) {
      token[b][place] = kQuestion;
      answer[b][place] = true;
    }
  }
  batch.input = ids.narrow(1, 0, length);
  batch.target = ids.narrow(1, 1, length).clone();
  auto target = batch.target.accessor<int64_t, 2>();
  for (int64_t b = 0; b < count; ++b) {
    for (int64_t t = 0; t < length; ++t) {
      if (answer[b][t]) target[b][t] = values[static_cast<size_t>(b)];
    }
  }
  batch.text = (batch.target < kMarker).logical_and(batch.recall.logical_not());
  return batch;
}

/// Some steps with windows of one length.
struct Stage {
  int64_t length;
  int64_t batch;
  int64_t steps;
};

/// How a model is made and trained. Short windows come first: what a question asks for is learned
/// there in a few steps.
struct Settings {
  int64_t context = 4096;
  int64_t layers = 2;
  int64_t width = 64;
  int64_t heads = 2;
  double learning_rate = 3e-3;
  uint64_t seed = 1;
  std::vector<Stage> stages = {{64, 16, 200}, {512, 4, 100}, {4096, 1, 80}};

  int64_t steps() const {
    int64_t all = 0;
    for (const auto& stage : stages) all += stage.steps;
    return all;
  }
  /// A warm-up over 20 steps, then half a cosine down to a tenth.
  double rate(int64_t step) const {
    const double now = static_cast<double>(step) / static_cast<double>(steps());
    const double warm = std::min(1.0, static_cast<double>(step + 1) / 20);
    return learning_rate * warm * (0.1 + 0.45 * (1 + std::cos(std::numbers::pi * now)));
  }
};

inline text::GPT make_model(const Settings& s) {
  torch::manual_seed(s.seed);
  text::GPT model(text::GPTOptions{.vocabulary = kVocabulary,
                                   .context = s.context,
                                   .layers = s.layers,
                                   .width = s.width,
                                   .heads = s.heads});
  // The GPT's own start is for wider models: here its attention would be flat for long.
  for (auto& block : model->blocks) {
    for (auto& layer : {block->qkv, block->up, block->attention_out}) {
      torch::nn::init::normal_(layer->weight, 0, 1 / std::sqrt(static_cast<double>(s.width)));
    }
  }
  return model;
}

/// Text and answers count alike, although there is far more text.
inline at::Tensor loss_of(text::GPT& model, const Batch& batch) {
  const auto logits = model(batch.input);
  const auto mean_of = [&](const at::Tensor& places) {
    return at::cross_entropy_loss(logits.index({places}), batch.target.index({places}));
  };
  return mean_of(batch.text) + mean_of(batch.recall);
}

/// Trains with the model's own causal attention, or with a mask.
inline text::GPT train(const Settings& s, const std::string& bytes,
                       const std::optional<tl::MaskSpec>& spec) {
  auto model = make_model(s);
  torch::optim::AdamW optimizer(model->parameters(),
                                torch::optim::AdamWOptions(s.learning_rate).betas({0.9, 0.95}));
  int64_t step = 0;
  for (const auto& stage : s.stages) {
    for (int64_t i = 0; i < stage.steps; ++i, ++step) {
      const auto seed = text::mix(s.seed * 1'000'003 + static_cast<uint64_t>(step));
      const auto batch = make_batch(bytes, stage.length, stage.batch, seed);
      for (auto& group : optimizer.param_groups()) group.options().set_lr(s.rate(step));
      optimizer.zero_grad();
      std::optional<tl::SparseAttentionScope> sparse;
      if (spec) sparse.emplace(*spec);  // the line that makes it sparse
      loss_of(model, batch).backward();
      torch::nn::utils::clip_grad_norm_(model->parameters(), 1.0);
      optimizer.step();
    }
  }
  return model;
}

/// How well a model does on held-out windows.
struct Score {
  double loss = 0;           ///< of the text's next byte, in nats
  double text_accuracy = 0;  ///< share of the next bytes that were guessed
  double recall = 0;         ///< share of the answers that were right; chance is 1 in 8
};

inline Score evaluate(text::GPT& model, const std::string& bytes, int64_t length, int64_t windows,
                      const std::optional<tl::MaskSpec>& spec) {
  const at::NoGradGuard no_grad;
  Score score;
  for (int64_t i = 0; i < windows; ++i) {
    const auto batch = make_batch(bytes, length, 1, text::mix(77'000 + static_cast<uint64_t>(i)));
    std::optional<tl::SparseAttentionScope> sparse;
    if (spec) sparse.emplace(*spec);
    const auto logits = model(batch.input);
    const auto right = at::argmax(logits, -1) == batch.target;
    const auto share = [&](const at::Tensor& places) {
      return right.index({places}).to(at::kFloat).mean().item<double>();
    };
    score.loss +=
        at::cross_entropy_loss(logits.index({batch.text}), batch.target.index({batch.text}))
            .item<double>();
    score.text_accuracy += share(batch.text);
    score.recall += share(batch.recall);
  }
  for (auto* figure : {&score.loss, &score.text_accuracy, &score.recall}) {
    *figure /= static_cast<double>(windows);
  }
  return score;
}

/// A few neighbours, and blocks at random of all that came before, other ones for each head; `sparsity`
/// is the share of the blocks that is left out.
inline tl::MaskSpec random_mask(double sparsity) {
  return tl::mask::causal() & (tl::mask::window(64) | tl::mask::random_sparsity(sparsity, 1));
}

/// A window that touches as much of `length` tokens.
inline tl::MaskSpec window_mask(double sparsity, int64_t length) {
  const auto size = static_cast<double>(length) * (1 - std::sqrt(sparsity));
  return tl::mask::causal() & tl::mask::window(static_cast<int64_t>(size));
}

}  // namespace long_context
