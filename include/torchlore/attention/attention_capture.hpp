#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "torchlore/attention/sparse_attention_scope.hpp"
#include "torchlore/core/bytes.hpp"

/// What the attention of a model looks at.
namespace torchlore {

/// Options of `AttentionCapture`.
struct AttentionCaptureOptions {
  /// The most that all records take together. One that would go beyond is kept without its
  /// probabilities, or not at all.
  Bytes limit = MiB(256);
  bool probabilities = false;  ///< keep the probabilities themselves, [B, H, T, S]
  int64_t top_k = 0;           ///< keys with the largest probability to keep for each query
  int64_t block_size = 0;      ///< of the block mass; 0: none
  /// Attentions of one forward pass: record i belongs to layer i modulo this. 0: i is the layer.
  int64_t layers = 0;
};

/// One attention as it was captured. Tensors are detached, on the model's device, and undefined if
/// they were not asked for.
struct CapturedAttention {
  int64_t layer = 0;  ///< see `AttentionCaptureOptions::layers`
  AttentionShape shape =
      {};               ///< with `nn::MultiheadAttention` heads is 1, and batch is batch x heads
  bool sparse = false;  ///< computed by `sparse_attention`
  double density = 1;   ///< share of the blocks that its mask touches; 1 if it was dense
  at::Tensor entropy = {};            ///< [B, H, T] float32, of each query's probabilities, in nats
  at::Tensor top_keys = {};           ///< [B, H, T, K] int64, the most probable key first
  at::Tensor top_probabilities = {};  ///< [B, H, T, K] float32, theirs
  /// [B, H, ⌈T / size⌉, ⌈S / size⌉] float32: the probability that goes from a query of the one block to
  /// all keys of the other, on average.
  at::Tensor block_mass = {};
  at::Tensor probabilities = {};  ///< [B, H, T, S] float32
};

/// Records what the attentions of any model look at while it is in scope. Results stay as they are, bit
/// for bit.
///
/// ```cpp
/// torchlore::AttentionCapture capture({.top_k = 4, .layers = 12});
/// model->forward(tokens);
/// for (const auto& one : capture.records()) std::cout << one.layer << ' ' << one.entropy.mean() << '\n';
/// ```
/// It sees `scaled_dot_product_attention`, `sparse_attention` (and so what runs inside a
/// `SparseAttentionScope`), and softmax followed by a product, which is `nn::MultiheadAttention` and
/// attention written by hand. Probabilities are those before dropout; a query without keys has only
/// zeros, and an entropy of 0.
///
/// @note It is an `OpMode` that only looks. Open it around a `SparseAttentionScope`, not inside.
///       Recomputation in backward is not recorded again.
/// @note Costs the scores once more, by a few rows at a time: O(B · H · T · S) time, and memory of about
///       16 MiB beside the records. Host syncs: 0 on the CPU.
class [[nodiscard]] AttentionCapture {
 public:
  /// Enters the scope.
  /// @throws c10::ValueError for options that make no sense; c10::Error inside an `OpMode` whose
  ///         handler changes results, and as `OpMode`.
  explicit AttentionCapture(AttentionCaptureOptions options = {});
  ~AttentionCapture();

  AttentionCapture(const AttentionCapture&) = delete;
  AttentionCapture(AttentionCapture&&) = delete;
  AttentionCapture& operator=(const AttentionCapture&) = delete;
  AttentionCapture& operator=(AttentionCapture&&) = delete;

  /// What was captured, in the order of the calls.
  std::vector<CapturedAttention> records() const;
  /// How many attentions were not recorded because of the limit.
  int64_t dropped() const;
  /// Forgets all records, and begins again with layer 0.
  void clear();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace torchlore
