#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "torchlore/attention/block_layout.hpp"

/// The dispatcher op behind `sparse_attention`.
namespace torchlore::attention {

/// A layout as the dispatcher carries it: LibTorch's ops take tensors, numbers and objects like this.
struct Pattern : torch::CustomClassHolder {
  explicit Pattern(BlockLayout blocks) : layout(std::move(blocks)) {}
  const BlockLayout layout;
};

/// What the op and its backward take beside the tensors that have gradients.
struct Settings {
  c10::intrusive_ptr<Pattern> pattern;
  double scale = 1;
  int64_t query_offset = 0;  ///< position of query 0 among the keys, for the slopes
  double dropout = 0;
  int64_t dropout_seed = 0;  ///< 64 bits, as the dispatcher carries them

  const BlockLayout& layout() const { return pattern->layout; }
};

/// The tensors of one call.
struct Inputs {
  at::Tensor query;                        ///< [B, H, T, D]
  at::Tensor key;                          ///< [B, H_k, S, D]
  at::Tensor value;                        ///< [B, H_k, S, E]
  std::optional<at::Tensor> bias;          ///< four dimensions, broadcasts to [B, H, T, S]
  std::optional<at::Tensor> alibi_slopes;  ///< [H]
};

/// The tiles of each batch entry and head, [B · H].
using TileLayouts = std::vector<const TileLayout*>;

/// Those of the call's layout.
TileLayouts tiles_of_call(const Inputs& inputs, const Settings& settings);

/// The gradients of `Inputs`; undefined where none is wanted.
struct Gradients {
  at::Tensor query, key, value, bias;
};

/// Calls the op `torchlore::sparse_attention`: through the modes, autocast and autograd that are
/// active. Returns the output and the log-sum-exp. The first call registers it, for the process.
std::tuple<at::Tensor, at::Tensor> call_op(const Inputs& inputs, const Settings& settings);

}  // namespace torchlore::attention
