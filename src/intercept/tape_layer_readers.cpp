#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/generated/Functions.h>

#include "tape_fields.hpp"
#include "tape_readers.hpp"

// Layers: ops that use parameters. The names of the inputs follow LibTorch's schemas, in the order of
// the arguments that have a derivative.
namespace torchlore::detail {
namespace {

namespace gen = torch::autograd::generated;

template <typename N>
void add(TapeReaders& readers, TapeOp op, TapeNames inputs, TapeRenames results = {}) {
  readers.emplace(typeid(N), TapeReader{.op = op,
                                        .inputs = std::move(inputs),
                                        .results = std::move(results),
                                        .read = &read_tape_fields<N>});
}

void add_products(TapeReaders& r) {
  add<gen::AddmmBackward0>(r, TapeOp::addmm, {"self", "mat1", "mat2"});
  add<gen::MmBackward0>(r, TapeOp::mm, {"self", "mat2"});
  add<gen::BmmBackward0>(r, TapeOp::bmm, {"self", "mat2"});
  add<gen::BaddbmmBackward0>(r, TapeOp::baddbmm, {"self", "batch1", "batch2"});
  add<gen::AddbmmBackward0>(r, TapeOp::addbmm, {"self", "batch1", "batch2"});
  add<gen::MvBackward0>(r, TapeOp::mv, {"self", "vec"});
  add<gen::AddmvBackward0>(r, TapeOp::addmv, {"self", "mat", "vec"});
  add<gen::DotBackward0>(r, TapeOp::dot, {"self", "tensor"});
  add<gen::VdotBackward0>(r, TapeOp::dot, {"self", "other"});
  add<gen::AddrBackward0>(r, TapeOp::addr, {"self", "vec1", "vec2"});
  add<gen::MatmulBackward0>(r, TapeOp::matmul, {"self", "other"});
  add<gen::LinearBackward0>(r, TapeOp::linear, {"input", "weight", "bias"});
  add<gen::MkldnnLinearBackward0>(r, TapeOp::linear, {"self", "weight", "bias"});
  add<gen::TrilinearBackward0>(r, TapeOp::trilinear, {"i1", "i2", "i3"});
  add<gen::WeightNormInterfaceBackward0>(r, TapeOp::weight_norm, {"v", "g"},
                                         {{"result1", "norms"}});
  add<gen::PreluKernelBackward0>(r, TapeOp::prelu, {"self", "weight"});
}

void add_convolutions(TapeReaders& r) {
  const TapeNames inputs{"input", "weight", "bias"};
  const TapeNames self_inputs{"self", "weight", "bias"};
  add<gen::ConvolutionBackward0>(r, TapeOp::convolution, inputs);
  add<gen::ConvolutionBackward1>(r, TapeOp::convolution, inputs);
  add<gen::ConvolutionOverrideableBackward0>(r, TapeOp::convolution, inputs);
  add<gen::MkldnnConvolutionBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::CudnnConvolutionBackward0>(r, TapeOp::convolution, {"self", "weight"});
  add<gen::CudnnConvolutionTransposeBackward0>(r, TapeOp::convolution, {"self", "weight"});
  add<gen::MiopenConvolutionBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::MiopenConvolutionTransposeBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::MiopenDepthwiseConvolutionBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::MpsConvolutionBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::MpsConvolutionTransposeBackward0>(r, TapeOp::convolution, {"self", "weight"});
  add<gen::ConvDepthwise2DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::ConvDepthwise3DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::SlowConv2DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::SlowConv3DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::SlowConvDilated2DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::SlowConvDilated3DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::SlowConvTranspose2DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::SlowConvTranspose3DBackward0>(r, TapeOp::convolution, self_inputs);
  add<gen::NnpackSpatialConvolutionBackward0>(r, TapeOp::convolution, inputs);
  add<gen::ConvTbcBackward0>(r, TapeOp::convolution, self_inputs);
}

void add_embeddings(TapeReaders& r) {
  add<gen::EmbeddingBackward0>(r, TapeOp::embedding, {"weight"});
  add<gen::EmbeddingBagBackward0>(
      r, TapeOp::embedding_bag, {"weight", "per_sample_weights"},
      {{"result1", "offset2bag"}, {"result2", "bag_size"}, {"result3", "max_indices"}});
}

void add_norms(TapeReaders& r) {
  const TapeNames inputs{"input", "weight", "bias"};
  const TapeRenames statistics{{"result1", "mean"}, {"result2", "rstd"}, {"result3", "reserve"}};
  add<gen::NativeLayerNormBackward0>(r, TapeOp::layer_norm, inputs, statistics);
  add<gen::NativeGroupNormBackward0>(r, TapeOp::group_norm, inputs, statistics);
  add<gen::FusedRmsNormBackward0>(r, TapeOp::rms_norm, {"input", "weight"}, {{"result1", "rstd"}});
  add<gen::NativeBatchNormBackward0>(r, TapeOp::batch_norm, inputs, statistics);
  add<gen::NativeBatchNormLegitBackward0>(r, TapeOp::batch_norm, inputs, statistics);
  add<gen::NativeBatchNormLegitBackward1>(r, TapeOp::batch_norm, inputs, statistics);
  add<gen::NativeBatchNormLegitNoTrainingBackward0>(r, TapeOp::batch_norm, inputs, statistics);
  add<gen::BatchNormWithUpdateBackward0>(r, TapeOp::batch_norm, inputs, statistics);
  add<gen::BatchNormNoUpdateBackward0>(r, TapeOp::batch_norm, inputs, statistics);
  add<gen::CudnnBatchNormBackward0>(r, TapeOp::batch_norm, inputs, statistics);
  add<gen::MiopenBatchNormBackward0>(r, TapeOp::batch_norm, inputs, statistics);
}

void add_recurrent(TapeReaders& r) {
  add<gen::MkldnnRnnLayerBackward0>(
      r, TapeOp::rnn, {"input", "weight0", "weight1", "weight2", "weight3", "hx", "cx"},
      {{"result0", "output"}, {"result1", "hy"}, {"result2", "cy"}, {"result3", "workspace"}});
  const TapeRenames results{
      {"result0", "output"}, {"result3", "reserve"}, {"result4", "weight_buf"}};
  add<gen::CudnnRnnBackward0>(r, TapeOp::rnn, {"input", "weight…", "hx", "cx"}, results);
  add<gen::MiopenRnnBackward0>(r, TapeOp::rnn, {"input", "weight…", "hx", "cx"}, results);
  add<gen::ThnnFusedLstmCellBackward0>(
      r, TapeOp::lstm_cell, {"input_gates", "hidden_gates", "cx", "input_bias", "hidden_bias"},
      {{"result1", "cy"}, {"result2", "workspace"}});
  add<gen::ThnnFusedGruCellBackward0>(
      r, TapeOp::gru_cell, {"input_gates", "hidden_gates", "hx", "input_bias", "hidden_bias"},
      {{"result1", "workspace"}});
}

void add_attention(TapeReaders& r) {
  add<gen::ScaledDotProductFlashAttentionForCpuBackward0>(r, TapeOp::attention,
                                                          {"query", "key", "value"});
  add<gen::ScaledDotProductFlashAttentionBackward0>(r, TapeOp::attention,
                                                    {"query", "key", "value"});
  add<gen::ScaledDotProductEfficientAttentionBackward0>(r, TapeOp::attention,
                                                        {"query", "key", "value", "attn_bias"});
  add<gen::ScaledDotProductCudnnAttentionBackward0>(r, TapeOp::attention,
                                                    {"query", "key", "value"});
  add<gen::ScaledDotProductFusedAttentionOverrideableBackward0>(
      r, TapeOp::attention, {"query", "key", "value", "attn_bias"});
  add<gen::FlashAttentionBackward0>(r, TapeOp::attention, {"query", "key", "value"});
  add<gen::EfficientAttentionBackward0>(r, TapeOp::attention, {"query", "key", "value", "bias"});
  const TapeNames self{"self"};
  add<gen::SoftmaxBackward0>(r, TapeOp::softmax, self);
  add<gen::LogSoftmaxBackward0>(r, TapeOp::softmax, self);
  add<gen::SafeSoftmaxBackward0>(r, TapeOp::softmax, self);
  add<gen::MaskedSoftmaxBackward0>(r, TapeOp::softmax, self);
  add<gen::NativeDropoutBackward0>(r, TapeOp::dropout, {"input"}, {{"result1", "mask"}});
  add<gen::FusedDropoutBackward0>(r, TapeOp::dropout, self, {{"result1", "mask"}});
}

}  // namespace

void add_layer_readers(TapeReaders& r) {
  r.emplace(typeid(torch::autograd::AccumulateGrad), TapeReader{.op = TapeOp::leaf});
  add_products(r);
  add_convolutions(r);
  add_embeddings(r);
  add_norms(r);
  add_recurrent(r);
  add_attention(r);
}

}  // namespace torchlore::detail
