// One kernel for each op that `OpHandler` has a function for.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_convolution_ops.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/baddbmm_ops.h>
#include <ATen/ops/batch_norm_ops.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/conv1d_ops.h>
#include <ATen/ops/conv2d_ops.h>
#include <ATen/ops/conv3d_ops.h>
#include <ATen/ops/conv_transpose1d_ops.h>
#include <ATen/ops/conv_transpose2d_ops.h>
#include <ATen/ops/conv_transpose3d_ops.h>
#include <ATen/ops/convolution_ops.h>
#include <ATen/ops/dropout_ops.h>
#include <ATen/ops/embedding_bag_ops.h>
#include <ATen/ops/embedding_ops.h>
#include <ATen/ops/group_norm_ops.h>
#include <ATen/ops/gru_ops.h>
#include <ATen/ops/instance_norm_ops.h>
#include <ATen/ops/layer_norm_ops.h>
#include <ATen/ops/linear_ops.h>
#include <ATen/ops/log_softmax_ops.h>
#include <ATen/ops/lstm_ops.h>
#include <ATen/ops/matmul_ops.h>
#include <ATen/ops/mm_ops.h>
#include <ATen/ops/rms_norm_ops.h>
#include <ATen/ops/rnn_relu_ops.h>
#include <ATen/ops/rnn_tanh_ops.h>
#include <ATen/ops/scaled_dot_product_attention_ops.h>
#include <ATen/ops/softmax_ops.h>
#include <torch/library.h>

#include "frame.hpp"

namespace torchlore::intercept {
namespace {

namespace op = at::_ops;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using SymInts = c10::SymIntArrayRef;

/// The kernel of one op: the function of the innermost frame that overrides it. `to_handler` makes
/// of the op's arguments those of the function.
template <typename Op, HandledOps::Op handled, auto to_handler,
          typename Signature = typename Op::schema>
struct TypedKernel;

template <typename Op, HandledOps::Op handled, auto to_handler, typename Result, typename... Args>
struct TypedKernel<Op, handled, to_handler, Result(Args...)> {
  static Result call(c10::DispatchKeySet keys, Args... args) {
    const Frame* frame = innermost;
    if (frame != nullptr && !frame->chain_ops.has(handled)) frame = nullptr;
    while (frame != nullptr && !frame->wants(handled)) {
      // A boxed frame further in takes it first; the dispatcher's next stop is its kernel.
      frame = frame->wants(HandledOps::boxed) ? nullptr : frame->outer.get();
    }
    if (frame == nullptr) return Op::redispatch(below(keys, kTypedKey), args...);
    const FrameGuard around(frame->outer.get());
    return to_handler(frame->handler, args...);
  }
};

template <typename Op, HandledOps::Op handled, auto to_handler>
void add(torch::Library& library) {
  const std::string overload = Op::overload_name;
  const std::string name = overload.empty() ? Op::name : c10::str(Op::name, ".", overload);
  library.impl(name.c_str(), &TypedKernel<Op, handled, to_handler>::call);
}

/// For an op whose arguments are those of the handler's function.
template <auto method>
constexpr auto as_is =
    [](OpHandler& handler, const auto&... args) { return (handler.*method)(args...); };

at::IntArrayRef plain(SymInts numbers) { return C10_AS_INTARRAYREF_SLOW(numbers); }
int64_t plain(const c10::SymInt& number) { return number.expect_int(); }

constexpr auto to_embedding = [](OpHandler& handler, const Tensor& weight, const Tensor& indices,
                                 const c10::SymInt& padding_idx, bool scale_grad_by_freq,
                                 bool sparse) {
  return handler.embedding(weight, indices, plain(padding_idx), scale_grad_by_freq, sparse);
};

constexpr auto to_layer_norm = [](OpHandler& handler, const Tensor& input, SymInts shape,
                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                  double eps, bool cudnn_enabled) {
  return handler.layer_norm(input, plain(shape), weight, bias, eps, cudnn_enabled);
};

constexpr auto to_rms_norm = [](OpHandler& handler, const Tensor& input, SymInts shape,
                                const OptionalTensor& weight, std::optional<double> eps) {
  return handler.rms_norm(input, plain(shape), weight, eps);
};

// --- Convolutions --------------------------------------------------------------------------------

using ConvolutionOp = ConvolutionCall::Op;

template <ConvolutionOp which>
constexpr auto to_convolution = [](OpHandler& handler, const Tensor& input, const Tensor& weight,
                                   const OptionalTensor& bias, SymInts stride, SymInts padding,
                                   SymInts dilation, const c10::SymInt& groups) {
  return handler.convolution({.op = which,
                              .input = input,
                              .weight = weight,
                              .bias = bias,
                              .stride = plain(stride),
                              .padding = plain(padding),
                              .dilation = plain(dilation),
                              .groups = plain(groups)});
};

template <ConvolutionOp which>
constexpr auto to_convolution_by_mode =
    [](OpHandler& handler, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
       SymInts stride, std::string_view padding, SymInts dilation, const c10::SymInt& groups) {
      return handler.convolution({.op = which,
                                  .input = input,
                                  .weight = weight,
                                  .bias = bias,
                                  .stride = plain(stride),
                                  .padding_mode = padding,
                                  .dilation = plain(dilation),
                                  .groups = plain(groups)});
    };

template <ConvolutionOp which>
constexpr auto to_transposed_convolution =
    [](OpHandler& handler, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
       SymInts stride, SymInts padding, SymInts output_padding, const c10::SymInt& groups,
       SymInts dilation) {
      return handler.convolution({.op = which,
                                  .input = input,
                                  .weight = weight,
                                  .bias = bias,
                                  .stride = plain(stride),
                                  .padding = plain(padding),
                                  .dilation = plain(dilation),
                                  .output_padding = plain(output_padding),
                                  .groups = plain(groups),
                                  .transposed = true});
    };

constexpr auto to_general_convolution =
    [](OpHandler& handler, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
       SymInts stride, SymInts padding, SymInts dilation, bool transposed, SymInts output_padding,
       const c10::SymInt& groups) {
      return handler.convolution({.op = ConvolutionOp::convolution,
                                  .input = input,
                                  .weight = weight,
                                  .bias = bias,
                                  .stride = plain(stride),
                                  .padding = plain(padding),
                                  .dilation = plain(dilation),
                                  .output_padding = plain(output_padding),
                                  .groups = plain(groups),
                                  .transposed = transposed});
    };

constexpr auto to_convolution_with_settings =
    [](OpHandler& handler, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
       SymInts stride, SymInts padding, SymInts dilation, bool transposed, SymInts output_padding,
       const c10::SymInt& groups, bool benchmark, bool deterministic, bool cudnn_enabled,
       bool allow_tf32) {
      return handler.convolution({.op = ConvolutionOp::_convolution,
                                  .input = input,
                                  .weight = weight,
                                  .bias = bias,
                                  .stride = plain(stride),
                                  .padding = plain(padding),
                                  .dilation = plain(dilation),
                                  .output_padding = plain(output_padding),
                                  .groups = plain(groups),
                                  .transposed = transposed,
                                  .benchmark = benchmark,
                                  .deterministic = deterministic,
                                  .cudnn_enabled = cudnn_enabled,
                                  .allow_tf32 = allow_tf32});
    };

template <typename Op, ConvolutionOp which>
void add_convolution(torch::Library& library) {
  add<Op, HandledOps::convolution, to_convolution<which>>(library);
}

template <typename Op, ConvolutionOp which>
void add_convolution_by_mode(torch::Library& library) {
  add<Op, HandledOps::convolution, to_convolution_by_mode<which>>(library);
}

template <typename Op, ConvolutionOp which>
void add_transposed_convolution(torch::Library& library) {
  add<Op, HandledOps::convolution, to_transposed_convolution<which>>(library);
}

void add_convolutions(torch::Library& library) {
  add_convolution<op::conv1d, ConvolutionOp::conv1d>(library);
  add_convolution<op::conv2d, ConvolutionOp::conv2d>(library);
  add_convolution<op::conv3d, ConvolutionOp::conv3d>(library);
  add_convolution_by_mode<op::conv1d_padding, ConvolutionOp::conv1d>(library);
  add_convolution_by_mode<op::conv2d_padding, ConvolutionOp::conv2d>(library);
  add_convolution_by_mode<op::conv3d_padding, ConvolutionOp::conv3d>(library);
  add_transposed_convolution<op::conv_transpose1d, ConvolutionOp::conv_transpose1d>(library);
  add_transposed_convolution<op::conv_transpose2d_input, ConvolutionOp::conv_transpose2d>(library);
  add_transposed_convolution<op::conv_transpose3d_input, ConvolutionOp::conv_transpose3d>(library);
  add<op::convolution, HandledOps::convolution, to_general_convolution>(library);
  add<op::_convolution, HandledOps::convolution, to_convolution_with_settings>(library);
}

// --- Embedding bags, attention, batch norm -------------------------------------------------------

constexpr auto to_embedding_bag =
    [](OpHandler& handler, const Tensor& weight, const Tensor& indices, const Tensor& offsets,
       bool scale_grad_by_freq, int64_t mode, bool sparse, const OptionalTensor& per_sample_weights,
       bool include_last_offset, std::optional<int64_t> padding_idx = std::nullopt) {
      return handler.embedding_bag({.weight = weight,
                                    .indices = indices,
                                    .offsets = offsets,
                                    .scale_grad_by_freq = scale_grad_by_freq,
                                    .mode = mode,
                                    .sparse = sparse,
                                    .per_sample_weights = per_sample_weights,
                                    .include_last_offset = include_last_offset,
                                    .padding_idx = padding_idx});
    };

constexpr auto to_attention = [](OpHandler& handler, const Tensor& query, const Tensor& key,
                                 const Tensor& value, const OptionalTensor& attn_mask,
                                 double dropout_p, bool is_causal, std::optional<double> scale,
                                 bool enable_gqa) {
  return handler.scaled_dot_product_attention({.query = query,
                                               .key = key,
                                               .value = value,
                                               .attn_mask = attn_mask,
                                               .dropout_p = dropout_p,
                                               .is_causal = is_causal,
                                               .scale = scale,
                                               .enable_gqa = enable_gqa});
};

template <BatchNormCall::Op which, auto method>
constexpr auto to_batch_norm = [](OpHandler& handler, const Tensor& input,
                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& running_mean,
                                  const OptionalTensor& running_var, bool training, double momentum,
                                  double eps, bool cudnn_enabled) {
  return (handler.*method)({.op = which,
                            .input = input,
                            .weight = weight,
                            .bias = bias,
                            .running_mean = running_mean,
                            .running_var = running_var,
                            .training = training,
                            .momentum = momentum,
                            .eps = eps,
                            .cudnn_enabled = cudnn_enabled});
};

void add_batch_norms(torch::Library& library) {
  using Op = BatchNormCall::Op;
  add<op::batch_norm, HandledOps::batch_norm,
      to_batch_norm<Op::batch_norm, &OpHandler::batch_norm>>(library);
  add<op::instance_norm, HandledOps::instance_norm,
      to_batch_norm<Op::instance_norm, &OpHandler::instance_norm>>(library);
}

// --- Recurrent layers ----------------------------------------------------------------------------

using RecurrentOp = RecurrentCall::Op;

/// What the op returns: output and hidden, and an LSTM's cell.
template <RecurrentOp which>
auto recurrent_result(RecurrentResult&& result) {
  if constexpr (which == RecurrentOp::lstm) {
    return std::tuple(std::move(result.output), std::move(result.hidden), std::move(result.cell));
  } else {
    return std::tuple(std::move(result.output), std::move(result.hidden));
  }
}

template <RecurrentOp which>
constexpr auto to_recurrent = [](OpHandler& handler, const Tensor& input, at::TensorList state,
                                 at::TensorList params, bool has_biases, int64_t num_layers,
                                 double dropout, bool train, bool bidirectional, bool batch_first) {
  return recurrent_result<which>(handler.recurrent({.op = which,
                                                    .input = input,
                                                    .state = state,
                                                    .params = params,
                                                    .has_biases = has_biases,
                                                    .num_layers = num_layers,
                                                    .dropout = dropout,
                                                    .train = train,
                                                    .bidirectional = bidirectional,
                                                    .batch_first = batch_first}));
};

template <RecurrentOp which>
constexpr auto to_packed_recurrent = [](OpHandler& handler, const Tensor& data,
                                        const Tensor& batch_sizes, at::TensorList state,
                                        at::TensorList params, bool has_biases, int64_t num_layers,
                                        double dropout, bool train, bool bidirectional) {
  return recurrent_result<which>(handler.recurrent({.op = which,
                                                    .input = data,
                                                    .batch_sizes = batch_sizes,
                                                    .state = state,
                                                    .params = params,
                                                    .has_biases = has_biases,
                                                    .num_layers = num_layers,
                                                    .dropout = dropout,
                                                    .train = train,
                                                    .bidirectional = bidirectional}));
};

template <typename Op, typename PackedOp, RecurrentOp which>
void add_recurrent(torch::Library& library) {
  add<Op, HandledOps::recurrent, to_recurrent<which>>(library);
  add<PackedOp, HandledOps::recurrent, to_packed_recurrent<which>>(library);
}

void add_recurrent_layers(torch::Library& library) {
  add_recurrent<op::lstm_input, op::lstm_data, RecurrentOp::lstm>(library);
  add_recurrent<op::gru_input, op::gru_data, RecurrentOp::gru>(library);
  add_recurrent<op::rnn_tanh_input, op::rnn_tanh_data, RecurrentOp::rnn_tanh>(library);
  add_recurrent<op::rnn_relu_input, op::rnn_relu_data, RecurrentOp::rnn_relu>(library);
}

}  // namespace

void register_typed_kernels() {
  static torch::Library fallback(torch::Library::IMPL, "_", kTypedKey, __FILE__, __LINE__);
  fallback.fallback(torch::CppFunction::makeFallthrough());
  static torch::Library aten(torch::Library::IMPL, "aten", kTypedKey, __FILE__, __LINE__);
  add<op::addmm, HandledOps::addmm, as_is<&OpHandler::addmm>>(aten);
  add<op::mm, HandledOps::mm, as_is<&OpHandler::mm>>(aten);
  add<op::bmm, HandledOps::bmm, as_is<&OpHandler::bmm>>(aten);
  add<op::baddbmm, HandledOps::baddbmm, as_is<&OpHandler::baddbmm>>(aten);
  add<op::matmul, HandledOps::matmul, as_is<&OpHandler::matmul>>(aten);
  add<op::linear, HandledOps::linear, as_is<&OpHandler::linear>>(aten);
  add_convolutions(aten);
  add<op::embedding, HandledOps::embedding, to_embedding>(aten);
  add<op::embedding_bag, HandledOps::embedding_bag, to_embedding_bag>(aten);
  add<op::embedding_bag_padding_idx, HandledOps::embedding_bag, to_embedding_bag>(aten);
  add<op::softmax_int, HandledOps::softmax, as_is<&OpHandler::softmax>>(aten);
  add<op::log_softmax_int, HandledOps::log_softmax, as_is<&OpHandler::log_softmax>>(aten);
  add<op::scaled_dot_product_attention, HandledOps::scaled_dot_product_attention, to_attention>(
      aten);
  add<op::layer_norm, HandledOps::layer_norm, to_layer_norm>(aten);
  add<op::group_norm, HandledOps::group_norm, as_is<&OpHandler::group_norm>>(aten);
  add_batch_norms(aten);
  add<op::rms_norm, HandledOps::rms_norm, to_rms_norm>(aten);
  add<op::dropout, HandledOps::dropout, as_is<&OpHandler::dropout>>(aten);
  add_recurrent_layers(aten);
}

}  // namespace torchlore::intercept
