#include "torchlore/intercept/op_handler.hpp"

#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/softmax.h>

#include "torchlore/intercept/op_call.hpp"

namespace torchlore {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

OpHandler::~OpHandler() = default;

void OpHandler::boxed(OpCall& call) { call.run(); }

Tensor OpHandler::addmm(const Tensor& bias, const Tensor& a, const Tensor& b,
                        const at::Scalar& beta, const at::Scalar& alpha) {
  return at::addmm(bias, a, b, beta, alpha);
}

Tensor OpHandler::mm(const Tensor& a, const Tensor& b) { return at::mm(a, b); }

Tensor OpHandler::bmm(const Tensor& a, const Tensor& b) { return at::bmm(a, b); }

Tensor OpHandler::baddbmm(const Tensor& bias, const Tensor& a, const Tensor& b,
                          const at::Scalar& beta, const at::Scalar& alpha) {
  return at::baddbmm(bias, a, b, beta, alpha);
}

Tensor OpHandler::matmul(const Tensor& a, const Tensor& b) { return at::matmul(a, b); }

Tensor OpHandler::linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  return at::linear(input, weight, bias);
}

Tensor OpHandler::convolution(const ConvolutionCall& call) { return call.run(); }

Tensor OpHandler::embedding(const Tensor& weight, const Tensor& indices, int64_t padding_idx,
                            bool scale_grad_by_freq, bool sparse) {
  return at::embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> OpHandler::embedding_bag(const EmbeddingBagCall& call) {
  return call.run();
}

Tensor OpHandler::softmax(const Tensor& input, int64_t dim, std::optional<at::ScalarType> dtype) {
  return at::softmax(input, dim, dtype);
}

Tensor OpHandler::log_softmax(const Tensor& input, int64_t dim,
                              std::optional<at::ScalarType> dtype) {
  return at::log_softmax(input, dim, dtype);
}

Tensor OpHandler::scaled_dot_product_attention(const AttentionCall& call) { return call.run(); }

Tensor OpHandler::layer_norm(const Tensor& input, at::IntArrayRef normalized_shape,
                             const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                             bool cudnn_enabled) {
  return at::layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enabled);
}

Tensor OpHandler::group_norm(const Tensor& input, int64_t num_groups, const OptionalTensor& weight,
                             const OptionalTensor& bias, double eps, bool cudnn_enabled) {
  return at::group_norm(input, num_groups, weight, bias, eps, cudnn_enabled);
}

Tensor OpHandler::batch_norm(const BatchNormCall& call) { return call.run(); }

Tensor OpHandler::instance_norm(const BatchNormCall& call) { return call.run(); }

Tensor OpHandler::rms_norm(const Tensor& input, at::IntArrayRef normalized_shape,
                           const OptionalTensor& weight, std::optional<double> eps) {
  return at::rms_norm(input, normalized_shape, weight, eps);
}

Tensor OpHandler::dropout(const Tensor& input, double p, bool train) {
  return at::dropout(input, p, train);
}

RecurrentResult OpHandler::recurrent(const RecurrentCall& call) { return call.run(); }

}  // namespace torchlore
