#include "torchlore/intercept/tape.hpp"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/functional/normalization.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/modules/transformerlayer.h>

#include <algorithm>
#include <functional>
#include <map>
#include <sstream>

#include "../../src/intercept/tape_readers.hpp"
#include "intercept/tape_rebuild.hpp"
#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::close;
using testing::message_of;
using testing::same;

at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

/// A loss whose gradient differs everywhere.
at::Tensor loss_of(const at::Tensor& output) { return output.sin().sum(); }

int64_t count(const Tape& tape, TapeOp op) {
  return std::count_if(tape.nodes().begin(), tape.nodes().end(),
                       [&](const TapeNode& node) { return node.op == op; });
}

const TapeNode& only(const Tape& tape, TapeOp op) {
  EXPECT_EQ(count(tape, op), 1) << to_string(op) << '\n' << tape;
  return *std::find_if(tape.nodes().begin(), tape.nodes().end(),
                       [&](const TapeNode& node) { return node.op == op; });
}

/// Rebuilds every parameter's gradient from the tape, then lets autograd compute it.
void expect_rebuilt(const nn::Module& model, const at::Tensor& loss) {
  const auto tape = Tape::of(loss, model);
  EXPECT_TRUE(tape.unknown().empty()) << tape;
  std::map<std::string, at::Tensor> rebuilt;
  for (const auto& leaf : tape.parameters()) {
    if (!leaf.name.empty()) rebuilt[leaf.name] = testing::rebuilt_gradient(tape, leaf);
  }
  for (const auto& item : model.named_parameters()) {
    EXPECT_FALSE(item.value().grad().defined()) << item.key() << ": the tape wrote a gradient";
  }
  loss.backward();
  for (const auto& item : model.named_parameters()) {
    ASSERT_TRUE(rebuilt.contains(item.key())) << item.key() << " is not on the tape\n" << tape;
    const auto& expected = item.value().grad();
    const double difference = (rebuilt[item.key()] - expected).abs().max().item<double>();
    EXPECT_LE(difference, 1e-11 * std::max(1.0, expected.abs().max().item<double>()))
        << item.key() << '\n'
        << tape;
  }
}

/// A layer, and a call of it.
struct Case {
  std::string name;
  std::function<std::pair<std::shared_ptr<nn::Module>, at::Tensor>()> run;
};

template <typename M, typename... Inputs>
Case layer(std::string name, std::function<M()> make, Inputs... inputs) {
  return {std::move(name), [=] {
            at::manual_seed(7);
            auto module = make();
            module->to(at::kDouble);
            return std::pair<std::shared_ptr<nn::Module>, at::Tensor>(module.ptr(),
                                                                      module->forward(inputs...));
          }};
}

class TapeRebuilds : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { at::set_num_threads(1); }  // thousands of tiny ops
};

TEST_P(TapeRebuilds, EveryParametersGradient) {
  const auto [model, output] = GetParam().run();
  expect_rebuilt(*model, loss_of(output));
}

/// Shown when a case fails.
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::string case_name(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

std::vector<Case> products() {
  return {
      layer<nn::Linear>(
          "Linear2d", [] { return nn::Linear(3, 4); }, random({5, 3})),
      layer<nn::Linear>(
          "Linear1d", [] { return nn::Linear(3, 4); }, random({3})),
      layer<nn::Linear>(
          "Linear3d", [] { return nn::Linear(3, 4); }, random({2, 5, 3})),
      layer<nn::Linear>(
          "LinearNoBias", [] { return nn::Linear(nn::LinearOptions(3, 4).bias(false)); },
          random({5, 3})),
      layer<nn::Bilinear>(
          "Bilinear", [] { return nn::Bilinear(3, 2, 4); }, random({5, 3}), random({5, 2})),
      layer<nn::PReLU>(
          "PReLU", [] { return nn::PReLU(); }, random({5, 3})),
      layer<nn::PReLU>(
          "PReLUPerChannel", [] { return nn::PReLU(nn::PReLUOptions().num_parameters(3)); },
          random({2, 3, 4})),
  };
}
INSTANTIATE_TEST_SUITE_P(Products, TapeRebuilds, ::testing::ValuesIn(products()), case_name);

std::vector<Case> convolutions() {
  using O1 = nn::Conv1dOptions;
  using O2 = nn::Conv2dOptions;
  using O3 = nn::Conv3dOptions;
  const auto image = random({2, 4, 6, 5});
  const auto conv2 = [&](std::string name, const O2& options) {
    return layer<nn::Conv2d>(
        std::move(name), [=] { return nn::Conv2d(options); }, image);
  };
  return {
      layer<nn::Conv1d>(
          "Conv1d", [] { return nn::Conv1d(O1(3, 2, 3)); }, random({2, 3, 7})),
      layer<nn::Conv1d>(
          "Conv1dUnbatched", [] { return nn::Conv1d(O1(3, 2, 3)); }, random({3, 7})),
      layer<nn::Conv3d>(
          "Conv3d", [] { return nn::Conv3d(O3(2, 2, 2).stride(2)); }, random({2, 2, 4, 3, 4})),
      conv2("Conv2d", O2(4, 3, 3).bias(false)),
      conv2("Strided", O2(4, 3, {3, 2}).stride({2, 1}).padding({1, 0})),
      conv2("Dilated", O2(4, 3, 2).dilation({2, 1})),
      conv2("Grouped", O2(4, 6, 3).groups(2)),
      conv2("Depthwise", O2(4, 4, 3).groups(4)),
      conv2("Same", O2(4, 3, 3).padding(torch::kSame)),
      conv2("SameUneven", O2(4, 3, 2).padding(torch::kSame)),
      conv2("Zeros", O2(4, 3, 3).padding(1)),
      conv2("Reflect", O2(4, 3, 3).padding(1).padding_mode(torch::kReflect)),
      conv2("Replicate", O2(4, 3, 3).padding(1).padding_mode(torch::kReplicate)),
      conv2("Circular", O2(4, 3, 3).padding(1).padding_mode(torch::kCircular)),
      layer<nn::ConvTranspose1d>(
          "Transposed1d",
          [] { return nn::ConvTranspose1d(nn::ConvTranspose1dOptions(3, 2, 3).stride(2)); },
          random({2, 3, 4})),
      layer<nn::ConvTranspose2d>(
          "Transposed2d",
          [] {
            return nn::ConvTranspose2d(
                nn::ConvTranspose2dOptions(4, 6, 3).stride(2).padding(1).output_padding(1).groups(
                    2));
          },
          image),
      layer<nn::ConvTranspose3d>(
          "Transposed3d",
          [] { return nn::ConvTranspose3d(nn::ConvTranspose3dOptions(2, 1, 2).dilation(2)); },
          random({1, 2, 2, 3, 2})),
  };
}
INSTANTIATE_TEST_SUITE_P(Convolutions, TapeRebuilds, ::testing::ValuesIn(convolutions()),
                         case_name);

std::vector<Case> embeddings() {
  const auto indices = at::tensor(std::vector<int64_t>{1, 3, 1, 0, 4, 2}).view({2, 3});
  const auto flat = indices.view(-1);
  const auto offsets = at::tensor(std::vector<int64_t>{0, 2, 2});  // the second bag is empty
  const auto bag = [=](std::string name, nn::EmbeddingBagOptions options) {
    return layer<nn::EmbeddingBag>(
        std::move(name), [=] { return nn::EmbeddingBag(options); }, flat, offsets);
  };
  return {
      layer<nn::Embedding>(
          "Embedding", [] { return nn::Embedding(5, 3); }, indices),
      layer<nn::Embedding>(
          "EmbeddingPadded",
          [] { return nn::Embedding(nn::EmbeddingOptions(5, 3).padding_idx(1)); }, indices),
      bag("BagSum", nn::EmbeddingBagOptions(5, 3).mode(torch::kSum)),
      bag("BagMean", nn::EmbeddingBagOptions(5, 3).mode(torch::kMean)),
      bag("BagMax", nn::EmbeddingBagOptions(5, 3).mode(torch::kMax)),
      layer<nn::EmbeddingBag>(
          "BagWeighted",
          [] { return nn::EmbeddingBag(nn::EmbeddingBagOptions(5, 3).mode(torch::kSum)); }, flat,
          offsets, random({6})),
  };
}
INSTANTIATE_TEST_SUITE_P(Embeddings, TapeRebuilds, ::testing::ValuesIn(embeddings()), case_name);

std::vector<Case> norms() {
  const auto image = random({3, 4, 2, 3});
  const auto with_gradient = random({3, 4, 2, 3}).requires_grad_();
  const auto evaluated = [=] {
    nn::BatchNorm2d norm(4);
    norm->to(at::kDouble);
    norm->forward(image);  // moves the running statistics
    norm->eval();
    return norm;
  };
  const auto instance = [] {
    return nn::InstanceNorm2d(nn::InstanceNorm2dOptions(4).affine(true));
  };
  return {
      layer<nn::LayerNorm>(
          "LayerNorm", [] { return nn::LayerNorm(nn::LayerNormOptions({4})); }, random({3, 2, 4})),
      layer<nn::LayerNorm>(
          "LayerNorm2d",
          [] {
            return nn::LayerNorm(nn::LayerNormOptions({2, 4}));
          },
          random({3, 2, 4})),
      layer<nn::GroupNorm>(
          "GroupNorm", [] { return nn::GroupNorm(2, 4); }, image),
      layer<nn::BatchNorm1d>(
          "BatchNorm1d", [] { return nn::BatchNorm1d(4); }, random({5, 4})),
      layer<nn::BatchNorm2d>(
          "BatchNorm2d", [] { return nn::BatchNorm2d(4); }, image),
      layer<nn::BatchNorm3d>(
          "BatchNorm3d", [] { return nn::BatchNorm3d(2); }, random({2, 2, 3, 2, 2})),
      layer<nn::BatchNorm2d>("BatchNormEvaluated", evaluated, image),
      layer<nn::InstanceNorm2d>("InstanceNorm", instance, image),
      layer<nn::InstanceNorm2d>("InstanceNormDeep", instance, with_gradient),
  };
}
INSTANTIATE_TEST_SUITE_P(Norms, TapeRebuilds, ::testing::ValuesIn(norms()), case_name);

/// Takes the first of what a module returns.
template <typename M, typename... Inputs>
Case first_output(std::string name, std::function<M()> make, Inputs... inputs) {
  return {std::move(name), [=] {
            at::manual_seed(7);
            auto module = make();
            module->to(at::kDouble);
            return std::pair<std::shared_ptr<nn::Module>, at::Tensor>(
                module.ptr(), std::get<0>(module->forward(inputs...)));
          }};
}

std::vector<Case> recurrent_and_attention() {
  const auto series = random({4, 2, 3});
  return {
      first_output<nn::LSTM>(
          "LSTM", [] { return nn::LSTM(3, 2); }, series),
      first_output<nn::LSTM>(
          "LSTMDeepBidirectional",
          [] { return nn::LSTM(nn::LSTMOptions(3, 2).num_layers(2).bidirectional(true)); }, series),
      first_output<nn::LSTM>(
          "LSTMProjected", [] { return nn::LSTM(nn::LSTMOptions(3, 4).proj_size(2)); }, series),
      first_output<nn::GRU>(
          "GRU", [] { return nn::GRU(3, 2); }, series),
      first_output<nn::RNN>(
          "RNN", [] { return nn::RNN(3, 2); }, series),
      first_output<nn::LSTMCell>(
          "LSTMCell", [] { return nn::LSTMCell(3, 2); }, random({2, 3})),
      layer<nn::GRUCell>(
          "GRUCell", [] { return nn::GRUCell(3, 2); }, random({2, 3})),
      layer<nn::RNNCell>(
          "RNNCell", [] { return nn::RNNCell(3, 2); }, random({2, 3})),
      first_output<nn::MultiheadAttention>(
          "SelfAttention", [] { return nn::MultiheadAttention(4, 2); }, random({3, 2, 4}),
          random({3, 2, 4}), random({3, 2, 4})),
      layer<nn::TransformerEncoderLayer>(
          "TransformerEncoderLayer",
          [] {
            return nn::TransformerEncoderLayer(
                nn::TransformerEncoderLayerOptions(4, 2).dim_feedforward(3).dropout(0));
          },
          random({3, 2, 4})),
  };
}
INSTANTIATE_TEST_SUITE_P(RecurrentAndAttention, TapeRebuilds,
                         ::testing::ValuesIn(recurrent_and_attention()), case_name);

TEST(Tape, DescribesALinearLayer) {
  nn::Linear layer(3, 4);
  const auto x = at::randn({5, 3});
  const auto y = layer->forward(x);
  const auto tape = Tape::of(loss_of(y), *layer);
  const auto& node = only(tape, TapeOp::addmm);
  EXPECT_EQ(node.name, "AddmmBackward0");
  EXPECT_TRUE(same(node.saved_tensor("mat1"), x));
  EXPECT_FALSE(node.saved_tensor("mat1").requires_grad());
  EXPECT_FALSE(node.saved_tensor("mat2").defined());  // only the gradient of x would need it
  EXPECT_EQ(node.outputs[0].sizes, (testing::Ints{5, 4}));
  EXPECT_EQ(node.outputs[0].dtype, at::kFloat);
  EXPECT_EQ(node.attribute<testing::Ints>("mat2_sizes"), (testing::Ints{3, 4}));
  EXPECT_EQ(node.attribute<int64_t>("alpha"), 1);
  ASSERT_EQ(node.inputs.size(), 3u);
  EXPECT_EQ(node.input("mat1").producer.node, -1);
  const auto& weight = tape.parameter("weight");
  EXPECT_TRUE(weight.tensor.is_same(layer->weight));
  ASSERT_EQ(weight.uses.size(), 1u);
  EXPECT_EQ(weight.uses[0], (TapeUse{node.index, 2}));
  const auto path = tape.path(weight.uses[0]);
  ASSERT_EQ(path.size(), 1u);
  EXPECT_EQ(tape.node(path[0]).name, "TBackward0");
  EXPECT_TRUE(tape.path(tape.parameter("bias").uses[0]).empty());
}

TEST(Tape, OrdersProducersBeforeConsumersAndNamesBothSides) {
  nn::Sequential model(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  const auto tape = Tape::of(loss_of(model->forward(at::randn({5, 3}))), *model);
  for (const auto& node : tape.nodes()) {
    EXPECT_EQ(node.index, &node - tape.nodes().data());
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const int64_t producer = node.inputs[i].producer.node;
      if (producer < 0) continue;
      EXPECT_LT(producer, node.index);
      const auto& consumers = tape.node(producer).consumers;
      EXPECT_EQ(std::count(consumers.begin(), consumers.end(),
                           (TapeUse{node.index, static_cast<int64_t>(i)})),
                1);
    }
  }
  EXPECT_EQ(tape.loss().node, static_cast<int64_t>(tape.nodes().size()) - 1);
  std::vector<std::string> names;
  for (const auto& parameter : tape.parameters()) names.push_back(parameter.name);
  EXPECT_EQ(names, (std::vector<std::string>{"0.weight", "0.bias", "2.weight", "2.bias"}));
}

/// Two layers that share one weight, and parameters used without a layer.
struct SharedImpl : nn::Module {
  SharedImpl() {
    weight = register_parameter("weight", random({3, 3}));
    again = register_parameter("again", weight);
    scale = register_parameter("scale", random({3}));
    shift = register_parameter("shift", random({1, 3}));
  }
  at::Tensor forward(const at::Tensor& x) {
    const auto h = x.mm(weight).tanh().mm(again.t()) * scale;
    return h + shift.expand({x.size(0), 3}) + weight.select(0, 1);
  }
  at::Tensor weight, again, scale, shift;
};

TEST(Tape, CountsEveryUseOfATiedParameter) {
  SharedImpl model;
  const auto loss = loss_of(model.forward(random({4, 3})));
  const auto tape = Tape::of(loss, model);
  EXPECT_EQ(tape.parameters().size(), 3u);
  const auto& weight = tape.parameter("weight");  // the first of its two names
  ASSERT_EQ(weight.uses.size(), 3u);
  EXPECT_TRUE(tape.path(weight.uses[0]).empty());
  EXPECT_EQ(tape.node(tape.path(weight.uses[1]).at(0)).name, "TBackward0");
  EXPECT_EQ(tape.node(tape.path(weight.uses[2]).at(0)).name, "SelectBackward0");
  EXPECT_EQ(tape.node(tape.parameter("scale").uses.at(0).node).name, "MulBackward0");
  EXPECT_EQ(tape.node(tape.parameter("shift").uses.at(0).node).name, "AddBackward0");
  EXPECT_EQ(message_of<c10::ValueError>([&] { tape.parameter("again"); }),
            "no parameter named 'again' is on the tape: the loss does not depend on it, it is "
            "frozen, or the tape was made without the model that names it");
}

TEST(Tape, RebuildsTiedAndDirectlyUsedParameters) {
  SharedImpl model;
  const auto loss = loss_of(model.forward(random({4, 3})));
  const auto tape = Tape::of(loss, model);
  std::vector<at::Tensor> rebuilt;
  for (const auto& leaf : tape.parameters()) {
    rebuilt.push_back(testing::rebuilt_gradient(tape, leaf));
  }
  loss.backward();
  for (size_t i = 0; i < rebuilt.size(); ++i) {
    EXPECT_TRUE(close(rebuilt[i], tape.parameters()[i].tensor.grad())) << tape.parameters()[i].name;
  }
}

/// RMS norm, which no module of torch::nn is; on the CPU LibTorch builds it from simpler ops.
struct RmsNormImpl : nn::Module {
  RmsNormImpl() { weight = register_parameter("weight", random({4})); }
  at::Tensor weight;
};

TEST(Tape, RebuildsAnRmsNorm) {
  RmsNormImpl model;
  expect_rebuilt(model, loss_of(at::rms_norm(random({3, 4}), {4}, model.weight)));
}

/// A checkpointed block has the graph of the plain one; reading it recomputes.
TEST(Tape, ReadsACheckpointedBlock) {
  nn::Sequential block(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  block->to(at::kDouble);
  const auto x = random({5, 3}).requires_grad_();
  const auto text = [&](const at::Tensor& loss) {
    std::ostringstream out;
    out << Tape::of(loss, *block);
    return out.str();
  };
  EXPECT_EQ(text(loss_of(checkpoint(block, x))), text(loss_of(block->forward(x))));
  expect_rebuilt(*block, loss_of(checkpoint(block, x)));
}

TEST(Tape, SeesAParameterThroughACast) {
  const auto weight = at::randn({3, 4}).requires_grad_();
  const auto loss = loss_of(random({2, 3}).mm(weight.to(at::kDouble)));
  const auto tape = Tape::of(loss, Tape::NamedParameters{{"w", weight}});
  const auto& use = tape.parameter("w").uses.at(0);
  EXPECT_EQ(tape.node(use.node).op, TapeOp::mm);
  EXPECT_EQ(tape.node(tape.path(use).at(0)).name, "ToCopyBackward0");
}

TEST(Tape, SeesParametersThroughAutocast) {
  nn::Linear layer(3, 4);
  at::Tensor y;
  {
    const Autocast amp(at::kCPU, at::kBFloat16);
    y = layer->forward(layer->forward(at::randn({5, 3})).slice(1, 0, 3));
  }
  const auto tape = Tape::of(loss_of(y.to(at::kFloat)), *layer);
  const auto& weight = tape.parameter("weight");
  ASSERT_EQ(weight.uses.size(), 2u);  // the cast copy is made once and used twice
  for (const auto& use : weight.uses) {
    EXPECT_EQ(tape.node(use.node).op, TapeOp::addmm);
    EXPECT_EQ(tape.node(use.node).outputs[0].dtype, at::kBFloat16);
    const auto path = tape.path(use);
    const auto is_cast = [&](int64_t i) { return tape.node(i).name == "ToCopyBackward0"; };
    EXPECT_EQ(std::count_if(path.begin(), path.end(), is_cast), 1);
  }
}

TEST(Tape, ListsTheViewsBeforeAUseInTheirOrder) {
  const auto w = random({3, 4}).requires_grad_();
  const auto loss = random({2, 4}).mm(w.t().unsqueeze(0).select(0, 0)).sum();
  const auto tape = Tape::of(loss);
  std::vector<std::string> names;
  for (const int64_t view : tape.path(tape.parameters()[0].uses.at(0))) {
    names.push_back(tape.node(view).name);
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"TBackward0", "UnsqueezeBackward0", "SelectBackward0"}));
}

TEST(Tape, DoesNotLookBehindACopyOntoATrackedTensor) {
  const auto w = random({3}).requires_grad_(), v = random({3}).requires_grad_();
  const auto tape = Tape::of((v * 2).copy_(w).square().sum(), Tape::NamedParameters{{"w", w}});
  const auto& uses = tape.parameter("w").uses;
  ASSERT_EQ(uses.size(), 1u);
  EXPECT_NE(tape.node(uses[0].node).name.find("CopyBackwards"), std::string::npos);
}

TEST(Tape, TakesAViewThatIsTheLossAsAUse) {
  const auto p = at::randn({1}).requires_grad_();
  const auto tape = Tape::of(p.view(at::IntArrayRef()));
  ASSERT_EQ(tape.parameters().size(), 1u);
  EXPECT_EQ(tape.parameters()[0].name, "");
  EXPECT_EQ(tape.parameters()[0].uses.size(), 1u);
}

/// An op of several arguments that have a derivative, under their names in LibTorch's schema.
struct Arguments {
  std::string node;
  std::vector<std::string> names;
  std::vector<at::Tensor> values;
  std::function<at::Tensor(const std::vector<at::Tensor>&)> run;
};

std::vector<Arguments> calls_with_several_arguments() {
  using T = const std::vector<at::Tensor>&;
  const auto v = random({3}), m = random({3, 3}), b = random({2, 3, 3});
  const auto image = random({1, 1, 3, 3}), p = at::rand({3}, at::kDouble);
  const auto rows = at::tensor(std::vector<int64_t>{2, 0, 1});
  const auto at_rows = rows.unsqueeze(1).expand({3, 3}).contiguous();
  const auto mask = at::tensor(std::vector<int64_t>{1, 0, 1}).to(at::kBool);
  return {
      {"Addmm",
       {"self", "mat1", "mat2"},
       {m, m, m},
       [](T t) { return at::addmm(t[0], t[1], t[2]); }},
      {"Mm", {"self", "mat2"}, {m, m}, [](T t) { return at::mm(t[0], t[1]); }},
      {"Bmm", {"self", "mat2"}, {b, b}, [](T t) { return at::bmm(t[0], t[1]); }},
      {"Baddbmm",
       {"self", "batch1", "batch2"},
       {b, b, b},
       [](T t) { return at::baddbmm(t[0], t[1], t[2]); }},
      {"Addbmm",
       {"self", "batch1", "batch2"},
       {m, b, b},
       [](T t) { return at::addbmm(t[0], t[1], t[2]); }},
      {"Mv", {"self", "vec"}, {m, v}, [](T t) { return at::mv(t[0], t[1]); }},
      {"Addmv", {"self", "mat", "vec"}, {v, m, v}, [](T t) { return at::addmv(t[0], t[1], t[2]); }},
      {"Addr", {"self", "vec1", "vec2"}, {m, v, v}, [](T t) { return at::addr(t[0], t[1], t[2]); }},
      {"Dot", {"self", "tensor"}, {v, v}, [](T t) { return at::dot(t[0], t[1]); }},
      {"Vdot", {"self", "other"}, {v, v}, [](T t) { return at::vdot(t[0], t[1]); }},
      {"Trilinear",
       {"i1", "i2", "i3"},
       {b, b, b},
       [](T t) { return at::_trilinear(t[0], t[1], t[2], {}, {}, {}, {2}); }},
      {"WeightNormInterface",
       {"v", "g"},
       {m, random({3, 1})},
       [](T t) { return std::get<0>(at::_weight_norm_interface(t[0], t[1])); }},
      {"NativeLayerNorm",
       {"input", "weight", "bias"},
       {m, v, v},
       [](T t) { return at::layer_norm(t[0], {3}, t[1], t[2]); }},
      {"NativeGroupNorm",
       {"input", "weight", "bias"},
       {b, v, v},
       [](T t) { return at::group_norm(t[0], 1, t[1], t[2]); }},
      {"NativeBatchNorm",
       {"input", "weight", "bias"},
       {m, v, v},
       [](T t) { return at::batch_norm(t[0], t[1], t[2], {}, {}, true, 0.1, 1e-5, false); }},
      {"Convolution",
       {"input", "weight", "bias"},
       {image, image, random({1})},
       [](T t) { return at::conv2d(t[0], t[1], t[2]); }},
      {"PreluKernel",
       {"self", "weight"},
       {b, random({1, 3, 1})},
       [](T t) { return at::_prelu_kernel(t[0], t[1]); }},
      {"Div", {"self", "other"}, {v, v}, [](T t) { return at::div(t[0], t[1]); }},
      {"Sub", {"self", "other"}, {v, v}, [](T t) { return at::sub(t[0], t[1]); }},
      {"Pow", {"self", "exponent"}, {p, v}, [](T t) { return at::pow(t[0], t[1]); }},
      {"Atan2", {"self", "other"}, {v, v}, [](T t) { return at::atan2(t[0], t[1]); }},
      {"Clamp", {"self", "min", "max"}, {v, v, v}, [](T t) { return at::clamp(t[0], t[1], t[2]); }},
      {"Lerp",
       {"self", "end", "weight"},
       {v, v, v},
       [](T t) { return at::lerp(t[0], t[1], t[2]); }},
      {"Addcmul",
       {"self", "tensor1", "tensor2"},
       {v, v, v},
       [](T t) { return at::addcmul(t[0], t[1], t[2]); }},
      {"Addcdiv",
       {"self", "tensor1", "tensor2"},
       {v, v, v},
       [](T t) { return at::addcdiv(t[0], t[1], t[2]); }},
      {"Where", {"self", "other"}, {v, v}, [=](T t) { return at::where(mask, t[0], t[1]); }},
      {"MaskedFill",
       {"self", "value"},
       {v, random({})},
       [=](T t) { return at::masked_fill(t[0], mask, t[1]); }},
      {"MaskedScatter",
       {"self", "source"},
       {v, v},
       [=](T t) { return at::masked_scatter(t[0], mask, t[1]); }},
      {"MseLoss", {"self", "target"}, {v, v}, [](T t) { return at::mse_loss(t[0], t[1]); }},
      {"BinaryCrossEntropy",
       {"self", "target"},
       {p, p},
       [](T t) { return at::binary_cross_entropy(t[0], t[1]); }},
      {"Cdist", {"x1", "x2"}, {m, m}, [](T t) { return at::_cdist_forward(t[0], t[1], 1, {}); }},
      {"Dist", {"self", "other"}, {v, v}, [](T t) { return at::dist(t[0], t[1]); }},
      {"GridSampler2D",
       {"input", "grid"},
       {image, random({1, 3, 3, 2})},
       [](T t) { return at::grid_sampler_2d(t[0], t[1], 0, 0, false); }},
      {"Scatter",
       {"self", "src"},
       {m, m},
       [=](T t) { return at::scatter(t[0], 0, at_rows, t[1]); }},
      {"ScatterAdd",
       {"self", "src"},
       {m, m},
       [=](T t) { return at::scatter_add(t[0], 0, at_rows, t[1]); }},
      {"IndexAdd",
       {"self", "source"},
       {m, m},
       [=](T t) { return at::index_add(t[0], 0, rows, t[1]); }},
      {"IndexCopy",
       {"self", "source"},
       {m, m},
       [=](T t) { return at::index_copy(t[0], 0, rows, t[1]); }},
      {"IndexFill",
       {"self", "value"},
       {m, random({})},
       [=](T t) { return at::index_fill(t[0], 0, rows, t[1]); }},
      {"IndexPut",
       {"self", "values"},
       {v, v},
       [=](T t) { return at::index_put(t[0], {rows}, t[1]); }},
      {"Put", {"self", "source"}, {v, v}, [=](T t) { return at::put(t[0], rows, t[1]); }},
      {"SliceScatter", {"self", "src"}, {m, m}, [](T t) { return at::slice_scatter(t[0], t[1]); }},
      {"SelectScatter",
       {"self", "src"},
       {m, v},
       [](T t) { return at::select_scatter(t[0], t[1], 0, 1); }},
      {"DiagonalScatter",
       {"self", "src"},
       {m, v},
       [](T t) { return at::diagonal_scatter(t[0], t[1]); }},
      {"Complex",
       {"real", "imag"},
       {v, v},
       [](T t) { return at::view_as_real(at::complex(t[0], t[1])); }},
      {"Cat",
       {"tensors", "tensors"},
       {m, m},
       [](T t) {
         return at::cat({t[0], t[1]});
       }},
      {"CopyBackwards", {"self", "src"}, {v, v}, [](T t) { return t[0].clone().copy_(t[1]); }},
  };
}

/// For each argument in turn: only it requires a gradient, so only the input of its name has a
/// producer.
TEST(Tape, NamesInputsAsTheSchemaDoes) {
  for (const auto& call : calls_with_several_arguments()) {
    for (size_t wanted = 0; wanted < call.values.size(); ++wanted) {
      if (call.node == "CopyBackwards" && wanted == 0) continue;  // overwritten
      auto values = call.values;
      values[wanted] = values[wanted].clone().requires_grad_();
      const auto tape = Tape::of(call.run(values).sum());
      const auto node = std::find_if(tape.nodes().begin(), tape.nodes().end(), [&](const auto& n) {
        return n.name.find(call.node) != std::string::npos;
      });
      ASSERT_NE(node, tape.nodes().end()) << call.node << '\n' << tape;
      EXPECT_EQ(node->inputs.size(), call.names.size()) << tape;
      for (const auto& input : node->inputs) {
        const size_t i = static_cast<size_t>(&input - node->inputs.data());
        EXPECT_EQ(input.producer.node >= 0, i == wanted) << tape;
        EXPECT_EQ(input.name, call.names[i]) << tape;
      }
    }
  }
}

TEST(Tape, NamesInputsAroundAListAndNoneOfAnotherCount) {
  const auto names = [](detail::TapeNames known, size_t count) {
    std::vector<std::string> all;
    for (size_t i = 0; i < count; ++i) {
      all.emplace_back(detail::tape_input_name({.inputs = known}, i, count));
    }
    return all;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names({"input", "weight…", "hx"}, 5),
            (Names{"input", "weight", "weight", "weight", "hx"}));
  EXPECT_EQ(names({"input", "weight…", "hx"}, 2), (Names{"input", "hx"}));
  EXPECT_EQ(names({"input", "weight…", "hx"}, 1), (Names{""}));
  EXPECT_EQ(names({"self", "other"}, 3), (Names{"", "", ""}));
}

TEST(Tape, ReadsTheAttributesOfAConvolution) {
  nn::Conv2d layer(nn::Conv2dOptions(4, 6, {3, 2})
                       .stride({2, 1})
                       .padding({1, 0})
                       .dilation({1, 2})
                       .groups(2)
                       .bias(false));
  const auto x = at::randn({2, 4, 7, 6});
  const auto y = layer->forward(x);
  const auto tape = Tape::of(loss_of(y), *layer);
  const auto& node = only(tape, TapeOp::convolution);
  EXPECT_EQ(node.attribute<testing::Ints>("stride"), (testing::Ints{2, 1}));
  EXPECT_EQ(node.attribute<testing::Ints>("padding"), (testing::Ints{1, 0}));
  EXPECT_EQ(node.attribute<testing::Ints>("dilation"), (testing::Ints{1, 2}));
  EXPECT_EQ(node.attribute<int64_t>("groups"), 2);
  EXPECT_FALSE(node.attribute<bool>("transposed"));
  EXPECT_EQ(node.outputs[0].sizes, y.sizes().vec());
  EXPECT_TRUE(same(node.saved_tensor("input"), x));
  EXPECT_EQ(node.input("bias").producer.node, -1);
}

TEST(Tape, TellsAnInstanceNormFromABatchNorm) {
  const auto op_of = [](auto norm, const at::Tensor& x) {
    norm->to(at::kDouble);
    const auto loss = loss_of(norm->forward(x));
    return std::make_pair(count(Tape::of(loss), TapeOp::instance_norm),
                          count(Tape::of(loss), TapeOp::batch_norm));
  };
  const auto yes = std::make_pair<int64_t, int64_t>(1, 0);
  const auto no = std::make_pair<int64_t, int64_t>(0, 1);
  const auto x = random({2, 3, 4, 4});
  const auto deep = x.clone().requires_grad_();
  const nn::InstanceNorm2d affine(nn::InstanceNorm2dOptions(3).affine(true));
  EXPECT_EQ(op_of(affine, x), yes);
  EXPECT_EQ(op_of(affine, deep), yes);
  EXPECT_EQ(op_of(nn::InstanceNorm2d(3), deep), yes);
  EXPECT_EQ(op_of(nn::BatchNorm2d(3), deep), no);
  EXPECT_EQ(op_of(nn::BatchNorm2d(3), deep.slice(0, 0, 1)), no);       // one example, but no view
  EXPECT_EQ(op_of(nn::BatchNorm2d(6), deep.view({1, 6, 4, 4})), yes);  // the same sum by hand
  EXPECT_EQ(op_of(nn::BatchNorm2d(3), deep.view({1, 3, 8, 4}).view({2, 3, 4, 4})), no);
  const auto repeated = random({3}).requires_grad_().repeat(2);
  const auto y = at::batch_norm(random({2, 6, 4, 4}), repeated, {}, {}, {}, true, 0, 1e-5, false);
  EXPECT_EQ(count(Tape::of(y.sum()), TapeOp::instance_norm), 0);
}

TEST(Tape, NamesTheFusedRecurrentLayer) {
  nn::LSTM layer(3, 2);  // float32: LibTorch takes oneDNN's kernel
  const auto x = at::randn({4, 2, 3});
  const auto y = std::get<0>(layer->forward(x));
  const auto loss = loss_of(y);
  const auto tape = Tape::of(loss, *layer);
  const auto& node = only(tape, TapeOp::rnn);
  for (const auto& [input, name] : std::map<std::string, std::string>{{"weight0", "weight_ih_l0"},
                                                                      {"weight1", "weight_hh_l0"},
                                                                      {"weight2", "bias_ih_l0"},
                                                                      {"weight3", "bias_hh_l0"}}) {
    ASSERT_GE(node.input(input).parameter, 0) << input;
    EXPECT_EQ(tape.parameters()[static_cast<size_t>(node.input(input).parameter)].name, name);
  }
  EXPECT_TRUE(same(node.saved_tensor("input"), x));
  EXPECT_TRUE(close(node.saved_tensor("output"), y.detach()));
  EXPECT_EQ(node.attribute<int64_t>("hidden_size"), 2);
  // What it saved gives its output again, computed in another way.
  const auto h = [&](const char* name) { return node.saved_tensor(name).to(at::kDouble); };
  const auto zero = at::zeros({1, 2, 2}, at::kDouble);
  const auto again = std::get<0>(at::lstm(h("input"), {zero, zero},
                                          {h("weight0"), h("weight1"), h("weight2"), h("weight3")},
                                          true, 1, 0, false, false, false));
  EXPECT_LE((again - y.to(at::kDouble)).abs().max().item<double>(), 1e-6);
}

TEST(Tape, NamesFusedAttention) {
  const auto q = at::randn({2, 2, 5, 4}).requires_grad_();
  const auto k = at::randn({2, 2, 6, 4}), v = at::randn({2, 2, 6, 4});
  const auto y = at::scaled_dot_product_attention(q, k, v);
  const auto tape = Tape::of(loss_of(y));
  const auto& node = only(tape, TapeOp::attention);
  EXPECT_TRUE(same(node.saved_tensor("query"), q.detach()));
  EXPECT_TRUE(same(node.saved_tensor("value"), v));
  EXPECT_EQ(node.input("query").parameter, 0);
  EXPECT_EQ(node.input("key").producer.node, -1);
  EXPECT_FALSE(node.attribute<bool>("is_causal"));
  const auto scores = node.saved_tensor("query").matmul(k.transpose(2, 3)) / 2;
  EXPECT_TRUE(close(node.saved_tensor("logsumexp"), scores.logsumexp(-1)));
}

TEST(Tape, SeesAttentionThatIsNotFused) {
  const auto q = random({2, 2, 5, 4}).requires_grad_();
  const auto mask = at::zeros({5, 5}, at::kDouble).requires_grad_();
  const auto tape = Tape::of(loss_of(at::scaled_dot_product_attention(q, q, q, mask)));
  EXPECT_EQ(count(tape, TapeOp::attention), 0);
  EXPECT_EQ(count(tape, TapeOp::softmax), 1);
  EXPECT_EQ(count(tape, TapeOp::bmm), 2);
  EXPECT_TRUE(tape.unknown().empty());
}

TEST(Tape, StaysReadableWhenTheGraphIsGone) {
  const auto x = random({5, 3});
  nn::Linear layer(3, 4);
  layer->to(at::kDouble);
  std::optional<Tape> tape;
  at::Tensor gradient;
  {
    const auto loss = loss_of(layer->forward(x));
    tape = Tape::of(loss, *layer);
    gradient = tape->output_gradients({{only(*tape, TapeOp::addmm).index}})[0];
    loss.backward();
    EXPECT_EQ(message_of([&] { tape->output_gradients({{0}}); }),
              "the graph of this tape was freed by a backward; ask for output gradients before "
              "it, or let backward retain the graph");
    EXPECT_EQ(message_of([&] { Tape::of(loss); }),
              "the graph behind this loss was freed by a backward; take the tape before backward, "
              "or let backward retain the graph");
    EXPECT_EQ(Tape::of(loss, {.keep = TapeKeep::structure}).nodes().size(), tape->nodes().size());
  }
  EXPECT_EQ(message_of([&] { tape->output_gradients({{0}}); }),
            "the graph of this tape is gone: the loss it was made of was destroyed; keep the loss "
            "until the gradients are taken");
  const auto& node = only(*tape, TapeOp::addmm);
  EXPECT_TRUE(same(node.saved_tensor("mat1"), x));
  EXPECT_TRUE(close(gradient.t().mm(node.saved_tensor("mat1")), layer->weight.grad()));
}

TEST(Tape, LeavesTheGraphAsItWas) {
  const auto x = random({6, 2, 5, 5});
  const auto gradients = [&](bool taped) {
    at::manual_seed(3);
    nn::Sequential model(nn::Conv2d(2, 4, 3), nn::BatchNorm2d(4), nn::ReLU(), nn::Flatten(),
                         nn::Linear(36, 3));
    model->to(at::kDouble);
    const auto loss = loss_of(model->forward(x));
    if (taped) {
      const auto tape = Tape::of(loss, *model);
      std::vector<TapeValue> all;
      for (const auto& node : tape.nodes()) all.push_back({node.index});
      tape.output_gradients(all);
      for (const auto& p : model->parameters()) EXPECT_FALSE(p.grad().defined());
    }
    loss.backward();
    std::vector<at::Tensor> result;
    for (const auto& p : model->parameters()) result.push_back(p.grad());
    return result;
  };
  const auto plain = gradients(false), taped = gradients(true);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(same(taped[i], plain[i])) << i;
}

TEST(Tape, GivesTheGradientsOfOutputs) {
  const auto x = random({4, 3}), w = random({3, 2}).requires_grad_();
  const auto h = x.mm(w);
  const auto parts = h.tanh().split(1, 1);
  const auto loss = (parts[0] * 3).sum();
  const auto tape = Tape::of(loss);
  const int64_t product = only(tape, TapeOp::mm).index;
  const auto split = std::find_if(tape.nodes().begin(), tape.nodes().end(),
                                  [](const auto& node) { return node.name == "SplitBackward0"; });
  ASSERT_NE(split, tape.nodes().end());
  const auto found =
      tape.output_gradients({{product}, {split->index, 0}, {split->index, 1}, tape.loss()});
  auto expected = at::zeros_like(h);
  expected.select(1, 0).copy_(3 * (1 - h.detach().select(1, 0).tanh().square()));
  EXPECT_TRUE(close(found[0], expected));
  EXPECT_TRUE(close(found[1], at::full({4, 1}, 3.0, at::kDouble)));
  EXPECT_FALSE(found[2].defined());  // the loss does not depend on the second part
  EXPECT_TRUE(close(found[3], at::ones({}, at::kDouble)));
  std::vector<size_t> visited;
  tape.visit_output_gradients({{split->index, 1}, {product}},
                              [&](size_t place, const at::Tensor&) { visited.push_back(place); });
  EXPECT_EQ(visited, std::vector<size_t>{1});
  EXPECT_TRUE(tape.output_gradients({}).empty());
}

struct CountProducts : OpHandler {
  int64_t count = 0;
  at::Tensor mm(const at::Tensor& a, const at::Tensor& b) override {
    ++count;
    return OpHandler::mm(a, b);
  }
};

TEST(Tape, ComputesNoWeightGradientForOutputGradients) {
  nn::Sequential model(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  const auto loss = loss_of(model->forward(at::randn({5, 3})));
  const auto tape = Tape::of(loss, *model);
  CountProducts products;
  {
    const OpMode mode(products);
    tape.output_gradients({{tape.parameter("0.weight").uses[0].node}});
  }
  EXPECT_EQ(products.count, 1);  // the second layer's input gradient
  {
    const OpMode mode(products);
    loss.backward();
  }
  EXPECT_EQ(products.count, 4);  // and both weights'
}

TEST(Tape, StartsFromTheGradientOfTheLossThatIsGiven) {
  const auto w = random({3}).requires_grad_();
  const auto losses = w * at::tensor({1.0, 2.0, 3.0}, at::kDouble);
  const auto tape = Tape::of(losses);
  EXPECT_EQ(message_of<c10::ValueError>([&] { tape.output_gradients({tape.loss()}); }),
            "the loss has shape [3]; set loss_gradient, which says how its elements are weighed");
  const auto weights = at::tensor({1.0, 0.0, 5.0}, at::kDouble);
  const auto leaf = tape.parameters()[0].node;
  const auto found = tape.output_gradients({{leaf}}, {.loss_gradient = weights})[0];
  EXPECT_TRUE(same(found, at::tensor({1.0, 0.0, 15.0}, at::kDouble)));
  EXPECT_FALSE(w.grad().defined());
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              tape.output_gradients({{leaf}}, {.loss_gradient = at::ones({2}, at::kDouble)});
            }),
            "loss_gradient has shape [2], but the loss [3]");
  EXPECT_EQ(message_of<c10::ValueError>(
                [&] { tape.output_gradients({{leaf}}, {.loss_gradient = at::ones({3})}); }),
            "loss_gradient is Float on cpu, but the loss Double on cpu");
}

TEST(Tape, HandsOverGradientsAfterTheUsersHooks) {
  // Whether the engine runs a node or only reaches it, what counts is what its backward would get.
  const auto x = random({4, 3}), v = random({3, 2}).requires_grad_();
  const auto w = random({3, 3}).requires_grad_();
  const auto h = x.mm(w);
  const auto y = h.mm(v);
  h.register_hook([](const at::Tensor& g) { return g * 10; });
  y.register_hook([](const at::Tensor& g) { return g * 2; });
  const auto loss = y.sum();
  const auto tape = Tape::of(loss, Tape::NamedParameters{{"w", w}, {"v", v}});
  const auto first = tape.parameter("w").uses[0].node, second = tape.parameter("v").uses[0].node;
  const auto found = tape.output_gradients({{first}, {second}});
  loss.backward();
  EXPECT_TRUE(close(x.t().mm(found[0]), w.grad()));
  EXPECT_TRUE(close(h.detach().t().mm(found[1]), v.grad()));
}

TEST(Tape, LeavesRetainedGradientsToBackward) {
  const auto w = random({3}).requires_grad_();
  const auto h = w * 2;
  h.retain_grad();
  const auto loss = h.sum();
  const auto tape = Tape::of(loss);
  tape.output_gradients({{tape.parameters()[0].node}});
  EXPECT_FALSE(h.grad().defined());
  loss.backward();
  EXPECT_TRUE(same(h.grad(), at::ones({3}, at::kDouble)));
}

TEST(Tape, HandsOverEachGradientOnce) {
  nn::Sequential model(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  const auto loss = loss_of(model->forward(at::randn({5, 3})));
  const auto tape = Tape::of(loss, *model);
  std::vector<TapeValue> values;
  for (const auto& parameter : tape.parameters()) values.push_back({parameter.uses[0].node});
  values.push_back({tape.parameter("0.bias").node});  // a leaf
  const auto expected = tape.output_gradients(values);
  std::vector<int> calls(values.size(), 0);
  tape.visit_output_gradients(values, [&](size_t place, const at::Tensor& gradient) {
    ++calls[place];
    EXPECT_TRUE(same(gradient, expected[place]));
  });
  EXPECT_EQ(calls, std::vector<int>(values.size(), 1));
  // A visitor that throws leaves no hook behind.
  EXPECT_THROW(tape.visit_output_gradients(
                   values, [](size_t, const at::Tensor&) { throw std::runtime_error("enough"); }),
               std::runtime_error);
  loss.backward();
  EXPECT_TRUE(same(model->named_parameters()["0.bias"].grad(), expected.back()));
  EXPECT_EQ(calls, std::vector<int>(values.size(), 1));
}

TEST(Tape, ReadsThroughSavedTensorHooks) {
  const auto x = random({5, 3}), w = random({3, 4}).requires_grad_();
  int64_t packed = 0, unpacked = 0;
  at::Tensor loss;
  {
    const SavedTensorScope scope(
        [&](const at::Tensor& t) {
          ++packed;
          return t.to(at::kFloat);
        },
        [&](const at::Tensor& t) {
          ++unpacked;
          return t.to(at::kDouble);
        });
    loss = x.mm(w).sum();
  }
  EXPECT_EQ(packed, 1);
  const auto bare = Tape::of(loss, {.keep = TapeKeep::structure});
  EXPECT_EQ(unpacked, 0);
  EXPECT_EQ(only(bare, TapeOp::mm).attribute<testing::Ints>("self_sizes"), (testing::Ints{5, 3}));
  const auto tape = Tape::of(loss);
  EXPECT_EQ(unpacked, 1);
  EXPECT_TRUE(same(only(tape, TapeOp::mm).saved_tensor("self"), x.to(at::kFloat).to(at::kDouble)));
}

TEST(Tape, FreesTheGraphWhenToldTo) {
  nn::Sequential model(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  const auto loss = loss_of(model->forward(at::randn({5, 3})));
  const auto tape = Tape::of(loss, *model);
  const auto first = tape.parameter("0.weight").uses[0].node;
  EXPECT_TRUE(tape.output_gradients({{first}}, {.keep_graph = false})[0].defined());
  EXPECT_EQ(message_of([&] { tape.output_gradients({{first}}); }),
            "the graph of this tape was freed by a backward; ask for output gradients before it, "
            "or let backward retain the graph");
  EXPECT_TRUE(tape.node(first).saved_tensor("mat1").defined());
}

TEST(Tape, KeepsWhatItIsToldTo) {
  nn::Sequential model(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  const auto loss = loss_of(model->forward(at::randn({5, 3})));
  const auto saved = [&](TapeKeep keep) {
    const auto tape = Tape::of(loss, *model, {.keep = keep});
    std::vector<std::string> names;
    for (const auto& node : tape.nodes()) {
      if (!node.saved.empty()) names.push_back(node.name);
    }
    return names;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(saved(TapeKeep::structure), Names{});
  EXPECT_EQ(saved(TapeKeep::parameter_uses), (Names{"AddmmBackward0", "AddmmBackward0"}));
  EXPECT_EQ(saved(TapeKeep::activations),
            (Names{"AddmmBackward0", "TanhBackward0", "AddmmBackward0", "SinBackward0"}));
  auto tape = Tape::of(loss, *model);
  const auto first = tape.parameter("0.weight").uses[0].node;
  tape.release(first);
  EXPECT_FALSE(tape.node(first).saved_tensor("mat1").defined());
  EXPECT_EQ(message_of<c10::IndexError>([&] { tape.release(99); }),
            "node 99 is not on the tape, which has 11 nodes");
}

TEST(Tape, HoldsNeitherGraphNorActivationsItDoesNotKeep) {
  auto x = random({5, 3});
  const auto w = random({3, 4}).requires_grad_();
  auto loss = x.mm(w).sum();
  const auto tape = Tape::of(loss, {.keep = TapeKeep::structure});
  const auto all = Tape::of(loss);
  loss = at::Tensor();
  EXPECT_EQ(x.storage().use_count(), 2);  // x, and the tape that keeps it
  EXPECT_EQ(tape.nodes().size(), all.nodes().size());
}

TEST(Tape, NoticesWritesIntoWhatItKeeps) {
  auto x = random({5, 3});
  const auto w = random({3, 4}).requires_grad_();
  const auto loss = x.mm(w).sum();
  const auto tape = Tape::of(loss);
  x.add_(1);
  const auto& node = only(tape, TapeOp::mm);
  EXPECT_EQ(message_of([&] { node.saved_tensor("self"); }),
            "'self', saved by node 1 (MmBackward0), was written in place after the tape was made; "
            "read it before, or clone it");
  EXPECT_TRUE(node.saved.at(0).changed());
  EXPECT_THROW(Tape::of(loss), c10::Error);  // as backward would
}

/// An op that only its author knows.
struct Doubled : torch::autograd::Function<Doubled> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x,
                            const at::Tensor& w) {
    return 2 * x * w;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list g) {
    return {at::Tensor(), 2 * g[0]};
  }
};

TEST(Tape, NamesAnUnknownOpAndGuessesNothing) {
  const auto w = random({3}).requires_grad_();
  const auto loss = Doubled::apply(random({3}), w).sum();
  const auto tape = Tape::of(loss);
  const auto& node = only(tape, TapeOp::unknown);
  EXPECT_NE(node.name.find("Doubled"), std::string::npos) << node.name;
  EXPECT_EQ(tape.unknown(), (std::vector<std::string>{node.name}));
  EXPECT_TRUE(node.saved.empty());
  EXPECT_EQ(node.outputs.at(0).sizes, (testing::Ints{3}));
  ASSERT_EQ(tape.parameters().size(), 1u);
  ASSERT_EQ(tape.parameters()[0].uses.size(), 1u);
  EXPECT_EQ(tape.parameters()[0].uses[0].node, node.index);
  for (const auto& input : node.inputs) EXPECT_EQ(input.name, "");
}

TEST(Tape, NamesTheOpInsideAnInPlaceWriteToAView) {
  const auto w = random({3}).requires_grad_();
  auto buffer = at::zeros({2, 3}, at::kDouble);
  buffer.select(0, 1).add_(w);
  const auto tape = Tape::of(loss_of(buffer));
  const auto& node = only(tape, TapeOp::in_place_view);
  EXPECT_EQ(node.attribute<std::string>("function"), "AddBackward0");
  ASSERT_EQ(tape.parameters()[0].uses.size(), 1u);
  EXPECT_EQ(tape.parameters()[0].uses[0].node, node.index);
}

TEST(Tape, FollowsAChainOfSixtyThousandOps) {
  const auto w = at::ones({}, at::kDouble).requires_grad_();
  auto y = w;
  for (int i = 0; i < 60'000; ++i) y = y + 1;
  const auto tape = Tape::of(y);
  EXPECT_EQ(tape.nodes().size(), 60'001u);
  EXPECT_EQ(tape.parameters()[0].uses.size(), 1u);
  EXPECT_TRUE(same(tape.output_gradients({{1}})[0], at::ones({}, at::kDouble)));
  auto views = w;
  for (int i = 0; i < 60'000; ++i) views = views.view(at::IntArrayRef());
  const auto through = Tape::of(views * 2);
  EXPECT_EQ(through.path(through.parameters()[0].uses.at(0)).size(), 60'000u);
}

TEST(Tape, RefusesALossWithoutAGraph) {
  const auto x = random({3});
  EXPECT_EQ(message_of<c10::ValueError>([&] { Tape::of(at::Tensor()); }),
            "the loss is an undefined tensor");
  EXPECT_EQ(message_of<c10::ValueError>([&] { Tape::of(x.sum()); }),
            "the loss depends on nothing that requires a gradient, so autograd recorded nothing; "
            "unfreeze a parameter, or leave the no_grad scope");
  EXPECT_EQ(message_of<c10::ValueError>([&] { Tape::of(at::zeros({}).requires_grad_()); }),
            "the loss is a leaf: nothing was computed, so there is nothing on the tape");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              const auto w = random({}).requires_grad_();
              Tape::of(w * 2, Tape::NamedParameters{{"w", at::Tensor()}});
            }),
            "the parameter named 'w' is undefined");
}

TEST(Tape, RefusesWhatIsNotThere) {
  const auto w = random({2}).requires_grad_();
  const auto loss = (w * 2).sum();
  const auto tape = Tape::of(loss);
  const auto& node = tape.node(1);
  EXPECT_EQ(message_of<c10::ValueError>([&] { node.attribute<int64_t>("dim"); }),
            "node 1 (MulBackward1) has no attribute named 'dim'; it has: other, self_dtype");
  EXPECT_EQ(message_of<c10::ValueError>([&] { node.attribute<int64_t>("self_dtype"); }),
            "attribute 'self_dtype' of node 1 (MulBackward1) is of another type");
  EXPECT_EQ(message_of<c10::ValueError>([&] { node.input("weight"); }),
            "node 1 (MulBackward1) has no input named 'weight'; it has: self");
  EXPECT_EQ(message_of<c10::IndexError>([&] { tape.node(-1); }),
            "node -1 is not on the tape, which has 3 nodes");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              tape.output_gradients({{1, 1}});
            }),
            "node 1 (MulBackward1) has 1 outputs, but output 1 was asked for");
}

TEST(Tape, PrintsOneLinePerNode) {
  const auto w = at::ones({2}).requires_grad_();
  std::ostringstream text;
  text << Tape::of((w * 2).sum(), Tape::NamedParameters{{"w", w}});
  EXPECT_EQ(text.str(),
            "%0 leaf torch::autograd::AccumulateGrad [2]\n"
            "%1 elementwise MulBackward1 [2] self=%0(w)\n"
            "%2 reduction SumBackward0 [] self=%1\n");
}

}  // namespace
}  // namespace torchlore
