#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <concepts>
#include <cstdint>
#include <optional>
#include <tuple>
#include <typeinfo>

#include "torchlore/intercept/typed_call.hpp"

namespace torchlore {

class OpCall;

/// What an `OpMode` does with the ops it sees. Derive from it and override the ops that matter.
///
/// An override may look at the arguments, call the base's function (which runs the op) with the
/// same or other arguments, or compute something else altogether; what it returns takes the op's place.
/// Backward flows through whatever it calls. While an override runs, its own mode is off: what it
/// calls is seen by the modes around it only.
///
/// ```cpp
/// struct CountMatmuls : torchlore::OpHandler {
///   int64_t count = 0;
///   at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
///                    const at::Scalar& beta, const at::Scalar& alpha) override {
///     ++count;
///     return OpHandler::addmm(bias, a, b, beta, alpha);
///   }
/// };
/// ```
/// Ops come as the model calls them, above autograd and autocast. An op without an override runs as
/// without the mode, and if it is made of ops that have one, these come: a handler of `addmm` alone
/// sees that of `at::linear`. In-place and out= variants come to `boxed` only.
///
/// docs/intercept.md lists the ops of each function and the modules of `torch::nn` that call them.
class OpHandler {
 public:
  virtual ~OpHandler();

  /// Whether results depend on this handler. A handler that only looks returns false; recomputing a
  /// forward pass (`checkpoint`) may then go on after its mode has ended.
  virtual bool changes_results() const { return true; }

  /// Every op that has no override of its own here, with arguments and results as one stack. Not
  /// overriding it costs those ops nothing.
  virtual void boxed(OpCall& call);

  /// beta * bias + alpha * a b; what `nn::Linear` with a bias calls for 2-d input.
  virtual at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                           const at::Scalar& beta, const at::Scalar& alpha);
  /// The product of two matrices.
  virtual at::Tensor mm(const at::Tensor& a, const at::Tensor& b);
  /// A batch of products of matrices.
  virtual at::Tensor bmm(const at::Tensor& a, const at::Tensor& b);
  /// beta * bias + alpha * a b for a batch of matrices.
  virtual at::Tensor baddbmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                             const at::Scalar& beta, const at::Scalar& alpha);
  /// The product of vectors, matrices or batches of them; what `nn::Linear` calls otherwise.
  virtual at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);
  /// input weightᵀ + bias. No module of `torch::nn` calls it; see `addmm` and `matmul`.
  virtual at::Tensor linear(const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias);
  /// Convolutions of all kinds.
  virtual at::Tensor convolution(const ConvolutionCall& call);
  /// The rows of `weight` [N, C] that `indices` names.
  virtual at::Tensor embedding(const at::Tensor& weight, const at::Tensor& indices,
                               int64_t padding_idx, bool scale_grad_by_freq, bool sparse);
  /// Sums, means or maxima of bags of rows.
  virtual std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> embedding_bag(
      const EmbeddingBagCall& call);
  /// Softmax along `dim`; what `nn::MultiheadAttention` makes its weights with.
  virtual at::Tensor softmax(const at::Tensor& input, int64_t dim,
                             std::optional<at::ScalarType> dtype);
  /// The logarithm of softmax along `dim`.
  virtual at::Tensor log_softmax(const at::Tensor& input, int64_t dim,
                                 std::optional<at::ScalarType> dtype);
  /// Attention in one op. No module of `torch::nn` calls it; most models written today do.
  virtual at::Tensor scaled_dot_product_attention(const AttentionCall& call);
  /// Norm over the last dimensions, those of `normalized_shape`.
  virtual at::Tensor layer_norm(const at::Tensor& input, at::IntArrayRef normalized_shape,
                                const std::optional<at::Tensor>& weight,
                                const std::optional<at::Tensor>& bias, double eps,
                                bool cudnn_enabled);
  /// Norm over groups of channels: `input` [B, C, …].
  virtual at::Tensor group_norm(const at::Tensor& input, int64_t num_groups,
                                const std::optional<at::Tensor>& weight,
                                const std::optional<at::Tensor>& bias, double eps,
                                bool cudnn_enabled);
  /// Norm of each channel over the batch.
  virtual at::Tensor batch_norm(const BatchNormCall& call);
  /// Norm of each channel of each instance.
  virtual at::Tensor instance_norm(const BatchNormCall& call);
  /// Norm by the root of the mean square over the last dimensions.
  virtual at::Tensor rms_norm(const at::Tensor& input, at::IntArrayRef normalized_shape,
                              const std::optional<at::Tensor>& weight, std::optional<double> eps);
  /// Zeros with probability `p`, and the rest scaled by 1 / (1 - p), if `train`.
  virtual at::Tensor dropout(const at::Tensor& input, double p, bool train);
  /// All layers of `nn::LSTM`, `nn::GRU` or `nn::RNN` at once.
  virtual RecurrentResult recurrent(const RecurrentCall& call);
};

/// The functions of an `OpHandler` that a class overrides, as a set of bits.
class HandledOps {
 public:
  /// One bit per function of `OpHandler`.
  enum Op : uint8_t {
    boxed,
    addmm,
    mm,
    bmm,
    baddbmm,
    matmul,
    linear,
    convolution,
    embedding,
    embedding_bag,
    softmax,
    log_softmax,
    scaled_dot_product_attention,
    layer_norm,
    group_norm,
    batch_norm,
    instance_norm,
    rms_norm,
    dropout,
    recurrent
  };

  /// What the handler's class overrides; everything if its class is only known at run time.
  template <std::derived_from<OpHandler> H>
  static HandledOps of(const H& handler) {
    // A reference to a base says nothing about what the object's own class overrides.
    if (typeid(handler) != typeid(H)) return HandledOps(~uint64_t{0});
    HandledOps ops(0);
    // The type of &H::f names the class that declares f. Where it cannot be named (an override that
    // is private or overloaded) there is one.
#define TORCHLORE_HANDLED(op)                                                   \
  if constexpr (requires { &H::op; }) {                                         \
    if (!std::same_as<decltype(&H::op), decltype(&OpHandler::op)>) ops.add(op); \
  } else {                                                                      \
    ops.add(op);                                                                \
  }
    TORCHLORE_HANDLED(boxed)
    TORCHLORE_HANDLED(addmm)
    TORCHLORE_HANDLED(mm)
    TORCHLORE_HANDLED(bmm)
    TORCHLORE_HANDLED(baddbmm)
    TORCHLORE_HANDLED(matmul)
    TORCHLORE_HANDLED(linear)
    TORCHLORE_HANDLED(convolution)
    TORCHLORE_HANDLED(embedding)
    TORCHLORE_HANDLED(embedding_bag)
    TORCHLORE_HANDLED(softmax)
    TORCHLORE_HANDLED(log_softmax)
    TORCHLORE_HANDLED(scaled_dot_product_attention)
    TORCHLORE_HANDLED(layer_norm)
    TORCHLORE_HANDLED(group_norm)
    TORCHLORE_HANDLED(batch_norm)
    TORCHLORE_HANDLED(instance_norm)
    TORCHLORE_HANDLED(rms_norm)
    TORCHLORE_HANDLED(dropout)
    TORCHLORE_HANDLED(recurrent)
#undef TORCHLORE_HANDLED
    return ops;
  }

  /// No op at all.
  constexpr HandledOps() = default;
  /// The ops of both.
  constexpr HandledOps operator|(HandledOps other) const { return HandledOps(bits_ | other.bits_); }

  /// Whether the op is in the set.
  constexpr bool has(Op op) const { return (bits_ >> op & 1) != 0; }
  /// Whether any op beside `boxed` is in the set.
  constexpr bool typed() const { return (bits_ & ~uint64_t{1}) != 0; }

 private:
  constexpr explicit HandledOps(uint64_t bits) : bits_(bits) {}
  void add(Op op) { bits_ |= uint64_t{1} << op; }

  uint64_t bits_ = 0;
};

}  // namespace torchlore
