#include "torchlore/intercept/op_mode.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/linear.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "torchlore/intercept/op_call.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

struct CountMatmuls : OpHandler {
  int64_t count = 0;
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    ++count;
    return OpHandler::addmm(bias, a, b, beta, alpha);
  }
};

/// Doubles what a linear layer computes.
struct Doubling : OpHandler {
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    return OpHandler::addmm(bias, a, b, beta, alpha) * 2;
  }
};

/// Writes down the names of all ops, whole or down to their parts.
struct Trace : OpHandler {
  explicit Trace(bool into_parts = false) : parts(into_parts) {}
  void boxed(OpCall& call) override {
    if (parts && call.composite()) return call.run_parts();
    names.push_back(call.name());
    call.run();
  }
  bool changes_results() const override { return false; }
  bool parts;
  std::vector<std::string> names;
};

using Names = std::vector<std::string>;

TEST(OpMode, SeesTheOpsOfAnUnmodifiedModel) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  const auto plain = layer(x);
  CountMatmuls handler;
  at::Tensor y;
  {
    OpMode mode(handler);
    y = layer(x);
  }
  layer(x);
  EXPECT_EQ(handler.count, 1);
  EXPECT_TRUE(y.equal(plain));
}

TEST(OpMode, ReplacesAnOpAndBackwardFlowsThrough) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  layer(x).sum().backward();
  const auto plain = layer->weight.grad().clone();
  layer->zero_grad();
  Doubling handler;
  at::Tensor loss;
  {
    OpMode mode(handler);
    loss = layer(x).sum();
  }
  loss.backward();
  EXPECT_TRUE(layer->weight.grad().equal(plain * 2));
}

TEST(OpMode, TheInnermostSeesAnOpFirstAndTheNextOneWhatItCalls) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  Doubling doubling;
  Trace outer;
  Trace inner;
  CountMatmuls count;
  {
    OpMode first(count);
    OpMode second(outer);
    OpMode third(doubling);
    OpMode fourth(inner);
    layer(x);
  }
  EXPECT_EQ(inner.names, (Names{"aten::t", "aten::addmm"}));
  EXPECT_EQ(outer.names, (Names{"aten::t", "aten::addmm", "aten::mul.Scalar"}));
  EXPECT_EQ(count.count, 1);
}

TEST(OpMode, ABoxedHandlerMayFollowACompositeOpIntoItsParts) {
  const auto x = at::randn({4, 3});
  const auto w = at::randn({3, 2});
  Trace whole;
  Trace parts(true);
  at::Tensor y;
  at::Tensor z;
  {
    OpMode mode(whole);
    y = at::matmul(x, w);
  }
  {
    OpMode mode(parts);
    z = at::matmul(x, w);
  }
  EXPECT_TRUE(z.equal(y));
  EXPECT_EQ(whole.names, Names{"aten::matmul"});
  EXPECT_EQ(parts.names, Names{"aten::mm"});
}

TEST(OpMode, AHandlerKnownByItsBaseIsStillCalled) {
  CountMatmuls handler;
  OpHandler& base = handler;
  {
    OpMode mode(base);
    at::addmm(at::zeros(2), at::zeros({1, 3}), at::zeros({3, 2}));
  }
  EXPECT_EQ(handler.count, 1);
}

TEST(OpMode, WorksUnderAutocastNoGradAndInferenceMode) {
  torch::nn::Linear layer(3, 2);
  const auto x = at::randn({4, 3});
  CountMatmuls handler;
  OpMode mode(handler);
  {
    const Autocast amp(at::kCPU);
    EXPECT_EQ(layer(x).scalar_type(), at::kBFloat16);
  }
  EXPECT_EQ(handler.count, 1);
  {
    const at::NoGradGuard no_grad;
    layer(x);
  }
  EXPECT_EQ(handler.count, 2);
  {
    const c10::InferenceMode inference;
    layer(x);
  }
  EXPECT_EQ(handler.count, 3);
}

TEST(OpMode, EndsWhenAnExceptionPasses) {
  CountMatmuls handler;
  try {
    OpMode mode(handler);
    throw std::runtime_error("out");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(OpModeState::capture().empty());
  at::addmm(at::zeros(2), at::zeros({1, 3}), at::zeros({3, 2}));
  EXPECT_EQ(handler.count, 0);
}

TEST(OpModeState, CarriesModesToAnotherThread) {
  CountMatmuls handler;
  OpMode mode(handler);
  const auto modes = OpModeState::capture();
  const auto multiply = [] { at::addmm(at::zeros(2), at::zeros({1, 3}), at::zeros({3, 2})); };
  std::thread(multiply).join();
  EXPECT_EQ(handler.count, 0);
  std::thread([&] {
    const OpModeGuard guard(modes);
    multiply();
  }).join();
  EXPECT_EQ(handler.count, 1);
}

}  // namespace
}  // namespace torchlore
