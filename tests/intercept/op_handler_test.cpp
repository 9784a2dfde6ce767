#include "torchlore/intercept/op_handler.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;
using Tensors = std::vector<at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

/// Overrides every typed function, writes down which one is called, and runs the op.
struct Recorder : OpHandler {
  std::vector<std::string> seen;

#define RECORD(result, function, parameters, ...) \
  result function parameters override {           \
    seen.emplace_back(#function);                 \
    return OpHandler::function(__VA_ARGS__);      \
  }
#define MATRICES (const at::Tensor& a, const at::Tensor& b)
#define SUM_AND_MATRICES                                                                     \
  (const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b, const at::Scalar& beta, \
   const at::Scalar& alpha)
  RECORD(at::Tensor, addmm, SUM_AND_MATRICES, bias, a, b, beta, alpha)
  RECORD(at::Tensor, mm, MATRICES, a, b)
  RECORD(at::Tensor, bmm, MATRICES, a, b)
  RECORD(at::Tensor, baddbmm, SUM_AND_MATRICES, bias, a, b, beta, alpha)
  RECORD(at::Tensor, matmul, MATRICES, a, b)
  RECORD(at::Tensor, linear,
         (const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias), input,
         weight, bias)
  RECORD(at::Tensor, convolution, (const ConvolutionCall& call), call)
  RECORD(at::Tensor, embedding,
         (const at::Tensor& weight, const at::Tensor& indices, int64_t padding_idx, bool by_freq,
          bool sparse),
         weight, indices, padding_idx, by_freq, sparse)
  using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  RECORD(FourTensors, embedding_bag, (const EmbeddingBagCall& call), call)
  RECORD(at::Tensor, softmax,
         (const at::Tensor& input, int64_t dim, std::optional<at::ScalarType> dtype), input, dim,
         dtype)
  RECORD(at::Tensor, log_softmax,
         (const at::Tensor& input, int64_t dim, std::optional<at::ScalarType> dtype), input, dim,
         dtype)
  RECORD(at::Tensor, scaled_dot_product_attention, (const AttentionCall& call), call)
  RECORD(at::Tensor, layer_norm,
         (const at::Tensor& input, at::IntArrayRef shape, const OptionalTensor& weight,
          const OptionalTensor& bias, double eps, bool cudnn),
         input, shape, weight, bias, eps, cudnn)
  RECORD(at::Tensor, group_norm,
         (const at::Tensor& input, int64_t groups, const OptionalTensor& weight,
          const OptionalTensor& bias, double eps, bool cudnn),
         input, groups, weight, bias, eps, cudnn)
  RECORD(at::Tensor, batch_norm, (const BatchNormCall& call), call)
  RECORD(at::Tensor, instance_norm, (const BatchNormCall& call), call)
  RECORD(at::Tensor, rms_norm,
         (const at::Tensor& input, at::IntArrayRef shape, const OptionalTensor& weight,
          std::optional<double> eps),
         input, shape, weight, eps)
  RECORD(at::Tensor, dropout, (const at::Tensor& input, double p, bool train), input, p, train)
  RECORD(RecurrentResult, recurrent, (const RecurrentCall& call), call)
#undef RECORD
};

/// Writes down each op with its arguments: tensors by address, so that copies show.
struct Trace : OpHandler {
  void boxed(OpCall& call) override {
    std::ostringstream text;
    text << call.name();
    const size_t count = call.op().schema().arguments().size();
    for (const auto& value : torch::jit::last(call.stack(), count)) text << ' ' << print(value);
    ops.push_back(text.str());
    call.run();
  }
  static std::string print(const c10::IValue& value) {
    std::ostringstream text;
    if (value.isTensor()) {
      text << value.toTensor().unsafeGetTensorImpl();
    } else if (value.isTensorList()) {
      for (const at::Tensor& t : value.toTensorList()) text << t.unsafeGetTensorImpl() << ',';
    } else {
      text << value;
    }
    return text.str();
  }
  std::vector<std::string> ops;
};

template <typename... T>
Tensors list(const std::tuple<T...>& tensors) {
  return std::apply([](const auto&... t) { return Tensors{t...}; }, tensors);
}
Tensors list(const at::Tensor& tensor) { return {tensor}; }

/// A call of one op, the function of `OpHandler` that it comes to, and its name.
struct Case {
  std::string function;
  std::string op;
  std::function<Tensors()> run;
};

at::Tensor randn(at::IntArrayRef sizes) { return at::randn(sizes).requires_grad_(true); }

at::Tensor longs(const std::vector<int64_t>& values) { return at::tensor(values); }

void seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  generator.set_current_seed(7);
}

#define CASE(function, op, call)             \
  {                                          \
    function, op, [=] { return list(call); } \
  }

std::vector<Case> matrix_cases() {
  const auto bias = randn({4}), a = randn({2, 3}), b = randn({3, 4});
  const auto batch_a = randn({5, 2, 3}), batch_b = randn({5, 3, 4}), w = randn({4, 3});
  return {
      CASE("addmm", "addmm", at::addmm(bias, a, b, 0.5, 2)),
      CASE("mm", "mm", at::mm(a, b)),
      CASE("bmm", "bmm", at::bmm(batch_a, batch_b)),
      CASE("baddbmm", "baddbmm", at::baddbmm(bias, batch_a, batch_b, 0.5, 2)),
      CASE("matmul", "matmul", at::matmul(batch_a, b)),
      CASE("linear", "linear", at::linear(batch_a, w)),
      CASE("linear", "linear", at::linear(batch_a, w, bias)),
  };
}

std::vector<Case> convolution_cases() {
  const auto x1 = randn({2, 4, 9}), x2 = randn({2, 4, 9, 8}), x3 = randn({2, 4, 9, 8, 7});
  const auto w1 = randn({4, 2, 3}), w2 = randn({4, 2, 3, 2}), w3 = randn({4, 2, 3, 2, 2});
  const auto b = randn({4}), bt = randn({4}), wide = randn({4, 4, 3, 2});
  using Ints = std::vector<int64_t>;
  const Ints stride{2, 1}, padding{1, 2}, dilation{1, 3}, extra{1, 0};
  return {
      CASE("convolution", "conv1d", at::conv1d(x1, w1, b, 2, 1, 3, 2)),
      CASE("convolution", "conv2d", at::conv2d(x2, w2, b, stride, padding, dilation, 2)),
      CASE("convolution", "conv2d", at::conv2d(x2, wide, {}, stride)),
      CASE("convolution", "conv3d", at::conv3d(x3, w3, b, {2, 1, 1}, {1, 0, 1}, {1, 2, 1}, 2)),
      CASE("convolution", "conv1d.padding", at::conv1d(x1, w1, b, 1, "same", 2, 2)),
      CASE("convolution", "conv2d.padding", at::conv2d(x2, w2, b, 1, "same", 2, 2)),
      CASE("convolution", "conv2d.padding", at::conv2d(x2, w2, b, 2, "valid", 1, 2)),
      CASE("convolution", "conv3d.padding", at::conv3d(x3, w3, b, 1, "valid", {1, 2, 1}, 2)),
      CASE("convolution", "conv_transpose1d", at::conv_transpose1d(x1, w1, bt, 3, 2, 1, 2, 2)),
      CASE("convolution", "conv_transpose2d.input",
           at::conv_transpose2d(x2, w2, bt, stride, padding, extra, 2, dilation)),
      CASE("convolution", "conv_transpose3d.input",
           at::conv_transpose3d(x3, w3, bt, {2, 1, 1}, {1, 0, 1}, {1, 0, 0}, 2, {1, 2, 1})),
      CASE("convolution", "convolution",
           at::convolution(x2, w2, b, stride, padding, dilation, false, {0, 0}, 2)),
      CASE("convolution", "convolution",
           at::convolution(x2, w2, bt, stride, padding, dilation, true, extra, 2)),
      CASE("convolution", "_convolution",
           at::_convolution(x2, w2, b, stride, padding, dilation, false, {0, 0}, 2, true, false,
                            true, false)),
      CASE("convolution", "_convolution",
           at::_convolution(x2, w2, bt, stride, padding, dilation, true, extra, 2, false, true,
                            false, true)),
  };
}

std::vector<Case> embedding_cases() {
  const auto weight = randn({10, 3}), factors = at::rand({6});
  const auto ids = longs({1, 2, 2, 9, 0, 4}), offsets = longs({0, 2, 3});
  return {
      CASE("embedding", "embedding", at::embedding(weight, ids, 2, true, false)),
      CASE("embedding", "embedding", at::embedding(weight, ids, -1, false, true)),
      CASE("embedding_bag", "embedding_bag.padding_idx",
           at::embedding_bag(weight, ids, offsets, false, 0, false, factors, true, 9)),
      CASE("embedding_bag", "embedding_bag.padding_idx",
           at::embedding_bag(weight, ids, offsets, true, 1, false, {}, false, std::nullopt)),
  };
}

std::vector<Case> attention_cases() {
  const auto q = randn({2, 4, 5, 8}), k = randn({2, 2, 6, 8}), v = randn({2, 2, 6, 7});
  const auto mask = at::rand({5, 6}) < 0.8;
  const OptionalTensor none;
  return {
      CASE("softmax", "softmax.int", at::softmax(q, 1)),
      CASE("softmax", "softmax.int", at::softmax(q, -1, at::kDouble)),
      CASE("log_softmax", "log_softmax.int", at::log_softmax(q, 2)),
      CASE("log_softmax", "log_softmax.int", at::log_softmax(q, -1, at::kDouble)),
      CASE("scaled_dot_product_attention", "scaled_dot_product_attention",
           at::scaled_dot_product_attention(q, q, q, none, 0.5, true)),
      CASE("scaled_dot_product_attention", "scaled_dot_product_attention",
           at::scaled_dot_product_attention(q, k, v, mask, 0, false, 0.3, true)),
  };
}

std::vector<Case> norm_cases() {
  const auto x = randn({3, 4, 6}), c = randn({4}), d = randn({4}), e = randn({6}), f = randn({6});
  const auto mean = at::randn({4}), variance = at::rand({4});
  const OptionalTensor none;
  return {
      CASE("layer_norm", "layer_norm", at::layer_norm(x, {6}, e, f, 1e-3, false)),
      CASE("layer_norm", "layer_norm", at::layer_norm(x, {4, 6})),
      CASE("group_norm", "group_norm", at::group_norm(x, 2, c, d, 1e-3, false)),
      CASE("batch_norm", "batch_norm",
           at::batch_norm(x, c, d, mean, variance, true, 0.3, 1e-3, true)),
      CASE("batch_norm", "batch_norm",
           at::batch_norm(x, none, none, mean, variance, false, 0.2, 1e-4, false)),
      CASE("instance_norm", "instance_norm",
           at::instance_norm(x, c, d, mean, variance, true, 0.3, 1e-3, false)),
      CASE("rms_norm", "rms_norm", at::rms_norm(x, {6}, e, 1e-3)),
      CASE("rms_norm", "rms_norm", at::rms_norm(x, {6})),
      CASE("dropout", "dropout", at::dropout(x, 0.4, true)),
      CASE("dropout", "dropout", at::dropout(x, 0.4, false)),
  };
}

/// The parameters of a two-layer recurrent network with `gates` gates, from 3 to 4 features.
Tensors recurrent_parameters(int64_t gates, bool bidirectional) {
  Tensors parameters;
  const int64_t directions = bidirectional ? 2 : 1;
  for (const int64_t features : {int64_t{3}, 4 * directions}) {
    for (int64_t d = 0; d < directions; ++d) {
      parameters.push_back(randn({gates * 4, features}));
      parameters.push_back(randn({gates * 4, 4}));
      parameters.push_back(randn({gates * 4}));
      parameters.push_back(randn({gates * 4}));
    }
  }
  return parameters;
}

std::vector<Case> recurrent_cases() {
  const auto x = randn({5, 2, 3}), packed = randn({7, 3}), sizes = longs({2, 2, 1, 1, 1});
  const auto h = randn({2, 2, 4}), h2 = randn({4, 2, 4}), h5 = randn({4, 5, 4});
  const Tensors state{h, randn({2, 2, 4})};
  const auto one = recurrent_parameters(1, false), three = recurrent_parameters(3, false);
  const auto four = recurrent_parameters(4, false), both = recurrent_parameters(3, true);
  return {
      CASE("recurrent", "lstm.input", at::lstm(x, state, four, true, 2, 0.5, true, false, false)),
      CASE("recurrent", "lstm.data",
           at::lstm(packed, sizes, state, four, true, 2, 0.5, true, false)),
      CASE("recurrent", "gru.input", at::gru(x, h5, both, true, 2, 0.0, false, true, true)),
      CASE("recurrent", "gru.data", at::gru(packed, sizes, h2, both, true, 2, 0.0, true, true)),
      CASE("recurrent", "rnn_tanh.input",
           at::rnn_tanh(x, h, one, true, 2, 0.25, true, false, false)),
      CASE("recurrent", "rnn_tanh.data",
           at::rnn_tanh(packed, sizes, h, one, true, 2, 0.25, true, false)),
      CASE("recurrent", "rnn_relu.input",
           at::rnn_relu(x, h, one, true, 2, 0.25, false, false, false)),
      CASE("recurrent", "rnn_relu.data",
           at::rnn_relu(packed, sizes, h, one, true, 2, 0.25, false, false)),
  };
}

class TypedOps : public ::testing::TestWithParam<std::vector<Case> (*)()> {};

TEST_P(TypedOps, ComeToTheirFunctionWhichRunsTheVeryOp) {
  for (const Case& c : GetParam()()) {
    SCOPED_TRACE(c.op);
    seed();
    const auto expected = c.run();
    Trace plain;
    Trace through;
    Recorder recorder;
    {
      const OpMode mode(plain);
      seed();
      c.run();
    }
    Tensors actual;
    {
      const OpMode outer(through);
      const OpMode inner(recorder);
      seed();
      actual = c.run();
    }
    EXPECT_EQ(recorder.seen.empty() ? "" : recorder.seen.back(), c.function);
    // The same op, with the very same arguments.
    EXPECT_EQ(through.ops, plain.ops);
    EXPECT_EQ(through.ops.back().substr(0, through.ops.back().find(' ')), "aten::" + c.op);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_TRUE(same(actual[i], expected[i])) << "result " << i;
      EXPECT_EQ(actual[i].requires_grad(), expected[i].requires_grad());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OpHandler, TypedOps,
                         ::testing::Values(matrix_cases, convolution_cases, embedding_cases,
                                           attention_cases, norm_cases, recurrent_cases));

TEST(OpHandler, AnOldOverloadOfEmbeddingBagRunsTheNewOne) {
  const auto weight = randn({10, 3});
  const auto ids = longs({1, 2, 2, 9}), offsets = longs({0, 2});
  const auto expected = std::get<0>(at::embedding_bag(weight, ids, offsets, false, 1));
  Recorder recorder;
  const OpMode mode(recorder);
  EXPECT_TRUE(same(std::get<0>(at::embedding_bag(weight, ids, offsets, false, 1)), expected));
  EXPECT_EQ(recorder.seen, std::vector<std::string>{"embedding_bag"});
}

TEST(OpHandler, BoxedCallersComeToTheTypedFunctionsToo) {
  const auto call = [](const char* op, const char* overload, torch::jit::Stack stack) {
    c10::Dispatcher::singleton().findSchemaOrThrow(op, overload).callBoxed(stack);
    return stack;
  };
  const auto a = randn({2, 3}), b = randn({3, 4}), x = randn({5, 2, 3}), h = randn({2, 2, 4});
  const auto parameters = recurrent_parameters(4, false);
  const auto expected = at::lstm(x, {h, h}, parameters, true, 2, 0.0, false, false, false);
  Recorder recorder;
  const OpMode mode(recorder);
  const auto product = call("aten::mm", "", {a, b});
  ASSERT_EQ(product.size(), 1U);
  EXPECT_EQ(recorder.seen, std::vector<std::string>{"mm"});
  const auto lstm = call("aten::lstm", "input",
                         {x, Tensors{h, h}, parameters, true, 2, 0.0, false, false, false});
  EXPECT_EQ(recorder.seen.back(), "recurrent");
  ASSERT_EQ(lstm.size(), 3U);
  EXPECT_TRUE(same(lstm[0].toTensor(), std::get<0>(expected)));
  EXPECT_TRUE(same(lstm[2].toTensor(), std::get<2>(expected)));
}

TEST(OpHandler, ADefaultOfAnOverriddenFunctionIsNotSeenAgain) {
  Recorder recorder;
  const OpMode mode(recorder);
  const auto x = at::randn({2, 3, 4});
  at::linear(x, at::randn({5, 4}), at::randn({5}));
  EXPECT_EQ(recorder.seen, std::vector<std::string>{"linear"});
}

// --- Calls that a handler changes ----------------------------------------------------------------

TEST(ConvolutionCall, RunsWithOtherArguments) {
  struct Negate : OpHandler {
    at::Tensor convolution(const ConvolutionCall& call) override {
      auto changed = call;
      changed.weight = -call.weight;
      changed.bias = std::nullopt;
      changed.padding_mode = "valid";
      return changed.run();
    }
  };
  const auto x = at::randn({1, 2, 6}), w = at::randn({3, 2, 3}), b = at::randn({3});
  const auto expected = at::conv1d(x, -w, {}, 1, "valid");
  Negate handler;
  const OpMode mode(handler);
  EXPECT_TRUE(same(at::conv1d(x, w, b, 1, "same"), expected));
  EXPECT_TRUE(same(at::conv1d(x, w, b, 1, 1), expected));
}

TEST(RecurrentCall, RunsWithOtherParametersAndReturnsWhatTheHandlerMade) {
  struct NoMemory : OpHandler {
    RecurrentResult recurrent(const RecurrentCall& call) override {
      const auto zero = at::zeros_like(call.state[0]);
      const Tensors state{zero, zero};
      auto changed = call;
      changed.state = at::TensorList(state).slice(0, call.state.size());
      auto result = changed.run();
      if (call.op == RecurrentCall::Op::lstm) result.cell = result.cell + 1;
      return result;
    }
  };
  const auto x = at::randn({5, 2, 3}), h = at::randn({2, 2, 4}), zero = at::zeros({2, 2, 4});
  const auto lstm = recurrent_parameters(4, false), gru = recurrent_parameters(3, false);
  const auto plain_lstm = at::lstm(x, {zero, zero}, lstm, true, 2, 0.0, false, false, false);
  const auto plain_gru = at::gru(x, zero, gru, true, 2, 0.0, false, false, false);
  NoMemory handler;
  const OpMode mode(handler);
  const auto [y, hn, cn] = at::lstm(x, {h, h}, lstm, true, 2, 0.0, false, false, false);
  EXPECT_TRUE(same(y, std::get<0>(plain_lstm)));
  EXPECT_TRUE(same(hn, std::get<1>(plain_lstm)));
  EXPECT_TRUE(same(cn, std::get<2>(plain_lstm) + 1));
  const auto [z, zn] = at::gru(x, h, gru, true, 2, 0.0, false, false, false);
  EXPECT_TRUE(same(z, std::get<0>(plain_gru)));
  EXPECT_TRUE(same(zn, std::get<1>(plain_gru)));
}

TEST(RecurrentCall, AGruHasOneState) {
  EXPECT_EQ(message_of<c10::ValueError>([] { RecurrentCall{.op = RecurrentCall::Op::gru}.run(); }),
            "RecurrentCall::state of a GRU or RNN holds one tensor, not 0");
}

TEST(AttentionCall, MayBeComputedInAnotherWay) {
  struct ByHand : OpHandler {
    at::Tensor scaled_dot_product_attention(const AttentionCall& call) override {
      const double scale = 1 / std::sqrt(static_cast<double>(call.query.size(-1)));
      return at::matmul(at::softmax(at::matmul(call.query, call.key.mT()) * scale, -1), call.value);
    }
  };
  const auto q = randn({1, 2, 5, 4}).to(at::kDouble), k = randn({1, 2, 6, 4}).to(at::kDouble);
  const auto expected = at::scaled_dot_product_attention(q, k, k);
  ByHand handler;
  const OpMode mode(handler);
  const auto actual = at::scaled_dot_product_attention(q, k, k);
  EXPECT_TRUE(testing::close(actual, expected));
  EXPECT_TRUE(actual.requires_grad());
}

// --- Which functions a class overrides -----------------------------------------------------------

struct Nothing : OpHandler {};

struct Softmax : OpHandler {
  at::Tensor softmax(const at::Tensor& input, int64_t, std::optional<at::ScalarType>) override {
    return input;
  }
};

struct SoftmaxAndMore : Softmax {
  at::Tensor dropout(const at::Tensor& input, double, bool) override { return input; }
};

class Private : public OpHandler {
  at::Tensor mm(const at::Tensor& a, const at::Tensor&) override { return a; }
};

struct Overloaded : OpHandler {
  at::Tensor bmm(const at::Tensor& a, const at::Tensor&) override { return a; }
  at::Tensor bmm(const at::Tensor& a) { return a; }
};

struct Boxed : OpHandler {
  void boxed(OpCall& call) override { call.run(); }
};

std::vector<int> bits(HandledOps ops) {
  std::vector<int> set;
  for (int i = HandledOps::boxed; i <= HandledOps::recurrent; ++i) {
    if (ops.has(static_cast<HandledOps::Op>(i))) set.push_back(i);
  }
  return set;
}

template <typename H>
std::vector<int> overridden() {
  return bits(HandledOps::of(H()));
}

TEST(HandledOps, AreTheFunctionsThatTheClassOrABaseOfItOverrides) {
  using Bits = std::vector<int>;
  EXPECT_EQ(overridden<Nothing>(), Bits{});
  EXPECT_EQ(overridden<Softmax>(), Bits{HandledOps::softmax});
  EXPECT_EQ(overridden<SoftmaxAndMore>(), (Bits{HandledOps::softmax, HandledOps::dropout}));
  EXPECT_EQ(overridden<Boxed>(), Bits{HandledOps::boxed});
  EXPECT_EQ(overridden<Private>(), Bits{HandledOps::mm});
  EXPECT_EQ(overridden<Overloaded>(), Bits{HandledOps::bmm});
}

TEST(HandledOps, FindsEachTypedFunction) {
  const auto all = overridden<Recorder>();
  ASSERT_EQ(all.size(), static_cast<size_t>(HandledOps::recurrent));
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], static_cast<int>(i + 1));
}

TEST(HandledOps, ABaseSaysNothingSoThatEverythingIsHandled) {
  const Softmax derived;
  const OpHandler& base = derived;
  EXPECT_EQ(bits(HandledOps::of(base)).size(), static_cast<size_t>(HandledOps::recurrent) + 1);
  const SoftmaxAndMore more;
  const Softmax& middle = more;
  EXPECT_EQ(bits(HandledOps::of(middle)).size(), static_cast<size_t>(HandledOps::recurrent) + 1);
}

TEST(HandledOps, AreJoined) {
  const auto joined = HandledOps::of(Boxed()) | HandledOps::of(Softmax());
  EXPECT_EQ(bits(joined), (std::vector<int>{HandledOps::boxed, HandledOps::softmax}));
  EXPECT_TRUE(joined.typed());
  EXPECT_FALSE(HandledOps::of(Boxed()).typed());
  EXPECT_FALSE(HandledOps().typed());
}

}  // namespace
}  // namespace torchlore
