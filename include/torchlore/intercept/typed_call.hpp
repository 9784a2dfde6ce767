#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

/// The ops with many arguments as an `OpHandler` gets them: each a struct with the arguments, to be
/// looked at, copied and changed, and `run()`, which runs the very op that was called with them.
/// Lists (`IntArrayRef`, `TensorList`) are views that live as long as the handler's function runs;
/// what takes their place must live until `run()` returns.
namespace torchlore {

/// A convolution of any kind: `input` [B, C, …] (or without B), `weight`, `bias`. What `nn::Conv2d`
/// and its likes call.
struct ConvolutionCall {
  /// The ops that come as this call.
  enum class Op : uint8_t {
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    convolution,   ///< any number of dimensions, `transposed` or not
    _convolution,  ///< the same, with cuDNN's settings
  };

  Op op = Op::conv2d;                             ///< which one was called
  at::Tensor input = {};                          ///< [B, C_in, …] or [C_in, …]
  at::Tensor weight = {};                         ///< [C_out, C_in / groups, …]; transposed:
                                                  ///< [C_in, C_out / groups, …]
  std::optional<at::Tensor> bias = std::nullopt;  ///< [C_out]
  at::IntArrayRef stride = {};                    ///< one number, or one per dimension
  at::IntArrayRef padding = {};         ///< zeros on each side; empty if `padding_mode` says
  std::string_view padding_mode = {};   ///< "same" or "valid" where the caller wrote that
  at::IntArrayRef dilation = {};        ///< distance between the kernel's elements
  at::IntArrayRef output_padding = {};  ///< of a transposed convolution
  int64_t groups = 1;                   ///< C_in and C_out are split into that many
  bool transposed = false;              ///< whether it is a transposed convolution
  bool benchmark = false;               ///< of `_convolution`
  bool deterministic = false;           ///< of `_convolution`
  bool cudnn_enabled = true;            ///< of `_convolution`
  bool allow_tf32 = true;               ///< of `_convolution`

  /// Runs the op. Returns [B, C_out, …].
  at::Tensor run() const;
};

/// What `nn::EmbeddingBag` calls.
struct EmbeddingBagCall {
  at::Tensor weight = {};                                       ///< [N, C]
  at::Tensor indices = {};                                      ///< into weight, of all bags
  at::Tensor offsets = {};                                      ///< where each bag begins
  bool scale_grad_by_freq = false;                              ///< gradients over counts
  int64_t mode = 0;                                             ///< 0 sum, 1 mean, 2 max
  bool sparse = false;                                          ///< sparse gradient of weight
  std::optional<at::Tensor> per_sample_weights = std::nullopt;  ///< one factor per index
  bool include_last_offset = false;                             ///< offsets end with the size
  std::optional<int64_t> padding_idx = std::nullopt;  ///< the index that counts as nothing

  /// Runs the op. Returns the bags [B, C], and three tensors that its backward needs.
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> run() const;
};

/// Attention: softmax(query keyᵀ scale + attn_mask) value.
struct AttentionCall {
  at::Tensor query = {};                               ///< [B, H, T, D]
  at::Tensor key = {};                                 ///< [B, H, S, D]
  at::Tensor value = {};                               ///< [B, H, S, E]
  std::optional<at::Tensor> attn_mask = std::nullopt;  ///< bool (true: attend), or added
  double dropout_p = 0;                                ///< of the attention weights
  bool is_causal = false;                              ///< attend to no later position
  std::optional<double> scale = std::nullopt;          ///< 1 / sqrt(D)
  bool enable_gqa = false;                             ///< key and value may have fewer heads

  /// Runs the op. Returns [B, H, T, E].
  at::Tensor run() const;
};

/// Batch norm, or instance norm: `input` [B, C, …] less its mean, over its deviation.
struct BatchNormCall {
  /// The ops that come as this call.
  enum class Op : uint8_t { batch_norm, instance_norm };

  Op op = Op::batch_norm;                                 ///< which one was called
  at::Tensor input = {};                                  ///< [B, C, …]
  std::optional<at::Tensor> weight = std::nullopt;        ///< [C]
  std::optional<at::Tensor> bias = std::nullopt;          ///< [C]
  std::optional<at::Tensor> running_mean = std::nullopt;  ///< [C]; the op updates it in training
  std::optional<at::Tensor> running_var = std::nullopt;   ///< [C]; the same
  bool training = true;   ///< mean and deviation are the input's (instance norm: use_input_stats)
  double momentum = 0.1;  ///< of the running statistics
  double eps = 1e-5;      ///< added to the variance
  bool cudnn_enabled = true;  ///< whether cuDNN may be used

  /// Runs the op. Returns [B, C, …].
  at::Tensor run() const;
};

/// What a recurrent layer returns.
struct RecurrentResult {
  at::Tensor output = {};  ///< of the last layer, at each time step
  at::Tensor hidden = {};  ///< [layers * directions, B, H] after the last time step
  at::Tensor cell = {};    ///< the same of an LSTM; undefined for the others
};

/// All layers of an `nn::LSTM`, `nn::GRU` or `nn::RNN`, which call one op for them.
struct RecurrentCall {
  /// The ops that come as this call.
  enum class Op : uint8_t { lstm, gru, rnn_tanh, rnn_relu };

  Op op = Op::lstm;             ///< which one was called
  at::Tensor input = {};        ///< [T, B, C], or [B, T, C]; packed: [all steps, C]
  at::Tensor batch_sizes = {};  ///< of a packed sequence; otherwise undefined
  at::TensorList state = {};    ///< before the first time step: hidden, and of an LSTM cell
  at::TensorList params = {};   ///< weight_ih, weight_hh, bias_ih, bias_hh of each layer
  bool has_biases = true;       ///< whether params has biases
  int64_t num_layers = 1;       ///< number of layers
  double dropout = 0;           ///< between layers
  bool train = true;            ///< whether dropout is applied
  bool bidirectional = false;   ///< two directions per layer
  bool batch_first = false;     ///< input is [B, T, C]

  /// Runs the op.
  RecurrentResult run() const;
};

}  // namespace torchlore
