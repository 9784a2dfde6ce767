#include "torchlore/intercept/typed_call.hpp"

#include <ATen/ops/_convolution.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>
#include <ATen/ops/conv_transpose1d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/conv_transpose3d.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/embedding_bag.h>
#include <ATen/ops/gru.h>
#include <ATen/ops/instance_norm.h>
#include <ATen/ops/lstm.h>
#include <ATen/ops/rnn_relu.h>
#include <ATen/ops/rnn_tanh.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/util/Exception.h>

namespace torchlore {
namespace {

/// `run` of conv1d, conv2d and conv3d: their paddings are numbers or a word, by overload.
template <typename Function>
at::Tensor convolve(const Function& function, const ConvolutionCall& c) {
  if (c.padding_mode.empty()) {
    return function(c.input, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups);
  }
  return function(c.input, c.weight, c.bias, c.stride, c.padding_mode, c.dilation, c.groups);
}

template <typename Function>
at::Tensor convolve_transposed(const Function& function, const ConvolutionCall& c) {
  return function(c.input, c.weight, c.bias, c.stride, c.padding, c.output_padding, c.groups,
                  c.dilation);
}

/// `run` of all but an LSTM, with a sequence or a packed one.
template <typename Function>
RecurrentResult recur(const Function& function, const RecurrentCall& c) {
  TORCH_CHECK_VALUE(c.state.size() == 1,
                    "RecurrentCall::state of a GRU or RNN holds one tensor, not ", c.state.size());
  auto [output, hidden] = c.batch_sizes.defined()
                              ? function(c.input, c.batch_sizes, c.state[0], c.params, c.has_biases,
                                         c.num_layers, c.dropout, c.train, c.bidirectional)
                              : function(c.input, c.state[0], c.params, c.has_biases, c.num_layers,
                                         c.dropout, c.train, c.bidirectional, c.batch_first);
  return {std::move(output), std::move(hidden), {}};
}

RecurrentResult run_lstm(const RecurrentCall& c) {
  auto [output, hidden, cell] =
      c.batch_sizes.defined() ? at::lstm(c.input, c.batch_sizes, c.state, c.params, c.has_biases,
                                         c.num_layers, c.dropout, c.train, c.bidirectional)
                              : at::lstm(c.input, c.state, c.params, c.has_biases, c.num_layers,
                                         c.dropout, c.train, c.bidirectional, c.batch_first);
  return {std::move(output), std::move(hidden), std::move(cell)};
}

}  // namespace

/// One of LibTorch's functions, with all its overloads.
#define OVERLOADS(function) [](const auto&... args) { return function(args...); }

at::Tensor ConvolutionCall::run() const {
  switch (op) {
    case Op::conv1d:
      return convolve(OVERLOADS(at::conv1d), *this);
    case Op::conv2d:
      return convolve(OVERLOADS(at::conv2d), *this);
    case Op::conv3d:
      return convolve(OVERLOADS(at::conv3d), *this);
    case Op::conv_transpose1d:
      return convolve_transposed(OVERLOADS(at::conv_transpose1d), *this);
    case Op::conv_transpose2d:
      return convolve_transposed(OVERLOADS(at::conv_transpose2d), *this);
    case Op::conv_transpose3d:
      return convolve_transposed(OVERLOADS(at::conv_transpose3d), *this);
    case Op::convolution:
      return at::convolution(input, weight, bias, stride, padding, dilation, transposed,
                             output_padding, groups);
    case Op::_convolution:
      break;
  }
  return at::_convolution(input, weight, bias, stride, padding, dilation, transposed,
                          output_padding, groups, benchmark, deterministic, cudnn_enabled,
                          allow_tf32);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> EmbeddingBagCall::run() const {
  return at::embedding_bag(weight, indices, offsets, scale_grad_by_freq, mode, sparse,
                           per_sample_weights, include_last_offset, padding_idx);
}

at::Tensor AttentionCall::run() const {
  return at::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale,
                                          enable_gqa);
}

at::Tensor BatchNormCall::run() const {
  if (op == Op::instance_norm) {
    return at::instance_norm(input, weight, bias, running_mean, running_var, training, momentum,
                             eps, cudnn_enabled);
  }
  return at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps,
                        cudnn_enabled);
}

RecurrentResult RecurrentCall::run() const {
  switch (op) {
    case Op::gru:
      return recur(OVERLOADS(at::gru), *this);
    case Op::rnn_tanh:
      return recur(OVERLOADS(at::rnn_tanh), *this);
    case Op::rnn_relu:
      return recur(OVERLOADS(at::rnn_relu), *this);
    case Op::lstm:
      break;
  }
  return run_lstm(*this);
}

#undef OVERLOADS

}  // namespace torchlore
