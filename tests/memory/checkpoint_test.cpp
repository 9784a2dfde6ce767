#include "torchlore/memory/checkpoint.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

#include <map>
#include <thread>

#include "checkpoint_support.hpp"
#include "support/message.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/memory/memory_meter.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using testing::expect_same_gradients;
using testing::gradients_of;
using testing::leaf;
using testing::same;
namespace nn = torch::nn;

TEST(Checkpoint, GivesTheGradientsOfThePlainCall) {
  nn::Sequential block(nn::Linear(8, 16), nn::GELU(), nn::Dropout(0.4), nn::Linear(16, 8));
  const auto x = leaf({5, 8});
  auto tensors = block->parameters();
  tensors.push_back(x);
  expect_same_gradients(
      tensors, [&] { return block->forward(x).square().sum(); },
      [&] { return checkpoint(block, x).square().sum(); });
}

TEST(Checkpoint, RunsTheBlockOncePerBackward) {
  const auto runs = std::make_shared<int>(0);
  const auto x = leaf({4});
  const auto y = checkpoint(
      [runs](const at::Tensor& t) {
        ++*runs;
        return t.sin().exp().cos();
      },
      x);
  EXPECT_EQ(*runs, 1);
  y.sum().backward({}, /*retain_graph=*/true);
  EXPECT_EQ(*runs, 2);
  y.sum().backward();
  EXPECT_EQ(*runs, 3);
}

TEST(Checkpoint, StopsTheRecomputationEarly) {
  const auto steps = std::make_shared<int>(0);
  const auto x = leaf({4});
  const auto y = checkpoint(
      [steps](const at::Tensor& t) {
        const auto z = t.exp();  // the last that saves anything
        ++*steps;
        return z + 1;
      },
      x);
  y.sum().backward();
  EXPECT_EQ(*steps, 1);
  EXPECT_TRUE(same(x.grad(), x.detach().exp()));
}

TEST(Checkpoint, WithoutGradModeItIsThePlainCall) {
  const at::NoGradGuard no_grad;
  const auto x = at::randn({3});
  EXPECT_TRUE(same(checkpoint([](const at::Tensor& t) { return t.exp(); }, x), x.exp()));
}

TEST(Checkpoint, TakesArgumentsAndResultsOfManyKinds) {
  const auto x = leaf({3});
  const auto y = leaf({3});
  const auto block = [](const std::tuple<at::Tensor, std::vector<at::Tensor>>& xs,
                        const std::optional<at::Tensor>& mask, std::optional<at::Tensor> none,
                        double scale, const std::string& name) {
    const auto& [a, rest] = xs;
    auto sum = a.exp() * rest[0].sin() * scale;
    if (mask) sum = sum * *mask;
    EXPECT_FALSE(none.has_value());
    EXPECT_EQ(name, "name");
    return std::make_tuple(sum, std::vector<at::Tensor>{sum.cos()});
  };
  const auto mask = at::tensor({1.0F, 0.0F, 2.0F});
  const auto inputs = std::make_tuple(x, std::vector<at::Tensor>{y});
  const auto loss = [](const auto& result) {
    return std::get<0>(result).sum() + std::get<1>(result)[0].sum();
  };
  expect_same_gradients(
      {x, y}, [&] { return loss(block(inputs, mask, std::nullopt, 2.0, "name")); },
      [&] { return loss(checkpoint(block, inputs, mask, std::nullopt, 2.0, "name")); });
}

TEST(Checkpoint, Nests) {
  nn::Sequential inner(nn::Linear(6, 6), nn::Dropout(0.5), nn::Tanh());
  nn::Sequential outer(nn::Linear(6, 6), nn::GELU());
  const auto x = leaf({4, 6});
  auto tensors = inner->parameters();
  for (const auto& p : outer->parameters()) tensors.push_back(p);
  tensors.push_back(x);
  expect_same_gradients(
      tensors, [&] { return outer->forward(inner->forward(x.sin())).square().sum(); },
      [&] {
        return checkpoint(
                   [inner, outer](const at::Tensor& t) {
                     return checkpoint(outer, checkpoint(inner, t.sin()));
                   },
                   x)
            .square()
            .sum();
      });
}

TEST(Checkpoint, BackwardMayRunOnAnotherThread) {
  nn::Sequential block(nn::Linear(8, 16), nn::Dropout(0.4), nn::GELU());
  const auto x = leaf({5, 8});
  expect_same_gradients(
      {x}, [&] { return block->forward(x).square().sum(); },
      [&] {
        const auto loss = checkpoint(block, x).square().sum();
        std::thread([&] { loss.backward({}, /*retain_graph=*/true); }).join();
        x.mutable_grad() = at::Tensor();
        return loss;
      });
}

at::Tensor chain(const at::Tensor& t) { return t.sin().exp().cos(); }

TEST(Checkpoint, AutogradGradReachesInputsAndInnerTensors) {
  const auto x = leaf({4});
  const auto inner = std::make_shared<at::Tensor>();
  const auto y = checkpoint(
      [inner](const at::Tensor& t) {
        auto h = t.sin();
        if (!inner->defined()) *inner = h;
        return h.exp().cos();
      },
      x);
  const auto h = x.detach().sin().requires_grad_(true);
  const auto expected = torch::autograd::grad({h.exp().cos().sum()}, {h})[0];
  const auto z = x.detach().clone().requires_grad_(true);
  const auto expected_input = torch::autograd::grad({chain(z).sum()}, {z})[0];
  EXPECT_TRUE(same(torch::autograd::grad({y.sum()}, {*inner}, {}, true)[0], expected));
  EXPECT_TRUE(same(torch::autograd::grad({y.sum()}, {x}, {}, true)[0], expected_input));
  EXPECT_TRUE(same(torch::autograd::grad({y.sum()}, {x})[0], expected_input));
}

TEST(Checkpoint, DoubleBackwardIsExact) {
  nn::Sequential block(nn::Linear(6, 6), nn::Tanh(), nn::Dropout(0.3), nn::Linear(6, 3));
  const auto x = leaf({4, 6});
  const auto penalty = [&](const at::Tensor& y) {
    const auto g = torch::autograd::grad({y.square().sum()}, {x}, {}, std::nullopt, true)[0];
    return g.square().sum() + y.sum();
  };
  auto tensors = block->parameters();
  tensors.push_back(x);
  expect_same_gradients(
      tensors, [&] { return penalty(block->forward(x)); },
      [&] { return penalty(checkpoint(block, x)); });
}

TEST(Checkpoint, ABlockMayRunBackwardInside) {
  const auto block = [](const at::Tensor& t) {
    const auto h = t.sin();
    const auto g = torch::autograd::grad({h.exp().sum()}, {h}, {}, true, true)[0];
    return (g * h.cos()).tanh();
  };
  const auto x = leaf({4});
  expect_same_gradients(
      {x}, [&] { return block(x).sum(); }, [&] { return checkpoint(block, x).sum(); });
}

TEST(Checkpoint, FreesEachTensorAsSoonAsItWasUsed) {
  constexpr int64_t kBytes = 4 << 20;
  const auto x = at::randn({kBytes / 4}).set_requires_grad(true);
  const auto block = [](const at::Tensor& t) {
    auto h = t;
    for (int i = 0; i < 8; ++i) h = h.sin();  // each saves its input
    return h;
  };
  for (const bool retain : {true, false}) {
    auto y = checkpoint(block, x);
    MemoryMeter meter;
    const auto ones = at::ones_like(y);
    y.backward(ones, retain);
    // 7 of the 8 inputs and the first of the gradients' two; then one goes for each that comes.
    EXPECT_LE(meter.peak().count(), kBytes * 11);
    y = at::Tensor();
    EXPECT_LE(meter.current().count(), kBytes * 2 + 8192);  // ones and x.grad()
  }
}

TEST(Checkpoint, ABackwardPassThatUsesLittleLeavesNothingBehind) {
  constexpr int64_t kBytes = 4 << 20;
  const auto x = at::randn({kBytes / 4}).set_requires_grad(true);
  const auto inner = std::make_shared<at::Tensor>();
  const auto y = checkpoint(
      [inner](const at::Tensor& t) {
        auto h = t.sin().sin().sin();
        if (!inner->defined()) *inner = h;
        return h.sin();
      },
      x);
  const MemoryMeter meter;
  torch::autograd::grad({y}, {*inner}, {at::ones_like(y)}, /*retain_graph=*/true);
  EXPECT_EQ(meter.current(), Bytes(0));
  const auto failing = y.register_hook(
      [](const at::Tensor&) -> at::Tensor { throw std::runtime_error("in a hook"); });
  static_cast<void>(failing);
  auto z = *inner;
  z.register_hook([](const at::Tensor&) -> at::Tensor { throw std::runtime_error("in a hook"); });
  y.remove_hook(failing);
  EXPECT_THROW(y.backward(at::ones_like(y), true), std::runtime_error);
  EXPECT_EQ(meter.current(), Bytes(0));
  *inner = at::Tensor();  // the block holds it, and it the graph, which holds the block
}

TEST(Checkpoint, HoldsNothingOfTheBlockButItsInputs) {
  constexpr int64_t kBytes = 4 << 20;
  const auto x = at::randn({kBytes / 4}).set_requires_grad(true);
  const MemoryMeter meter;
  const auto y = checkpoint(
      [](const at::Tensor& t) { return checkpoint(chain, t.exp()).tanh().sum(); }, x * 2);
  EXPECT_LE(meter.current().count(), kBytes + 4096);  // x * 2
  EXPECT_GE(meter.current().count(), kBytes);
}

TEST(Checkpoint, RepeatsAutocastAsItWas) {
  nn::Sequential block(nn::Linear(8, 8), nn::GELU(), nn::Linear(8, 8));
  const auto x = leaf({4, 8});
  for (const bool cache : {true, false}) {
    const auto under = [&](const auto& forward) {
      const Autocast amp(at::kCPU, at::kBFloat16, {.cache = cache});
      return forward().to(at::kFloat).square().sum();
    };
    auto tensors = block->parameters();
    tensors.push_back(x);
    expect_same_gradients(
        tensors, [&] { return under([&] { return block->forward(x); }); },
        [&] { return under([&] { return checkpoint(block, x); }); });
    EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  }
  // Backward inside another setting than the forward pass.
  const auto expected = gradients_of(block->parameters(), [&] { return block->forward(x).sum(); });
  const auto actual = gradients_of(block->parameters(), [&] {
    auto loss = checkpoint(block, x).sum();
    {
      const Autocast amp(at::kCPU, at::kHalf);
      loss.backward({}, true);
    }
    for (const auto& p : block->parameters()) p.mutable_grad() = at::Tensor();
    return loss;
  });
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(same(actual[i], expected[i]));
}

/// Doubles every product of matrices.
struct Doubling : OpHandler {
  at::Tensor mm(const at::Tensor& a, const at::Tensor& b) override {
    return OpHandler::mm(a, b) * 2;
  }
};

TEST(Checkpoint, RepeatsTheModesOfTheForwardPass) {
  const auto w = leaf({4, 4});
  const auto x = leaf({3, 4});
  const auto block = [w](const at::Tensor& t) { return t.mm(w).sin().mm(w).exp(); };
  expect_same_gradients(
      {x, w},
      [&] {
        OpMode mode(std::make_shared<Doubling>());
        return block(x).sum();
      },
      [&] {
        OpMode mode(std::make_shared<Doubling>());
        return checkpoint(block, x).sum();
      });
}

TEST(Checkpoint, AModeOfBackwardDoesNotReachTheRecomputation) {
  const auto w = leaf({4, 4});
  const auto x = leaf({3, 4});
  const auto block = [w](const at::Tensor& t) { return t.mm(w).sin(); };
  const auto expected = gradients_of({x}, [&] { return block(x).sum(); });
  const auto y = checkpoint([block](const at::Tensor& t) { return block(t).exp(); }, x);
  const auto plain = block(x).exp();
  Doubling handler;
  OpMode mode(handler);
  x.mutable_grad() = at::Tensor();
  y.backward(at::ones_like(y));
  const auto actual = x.grad().clone();
  x.mutable_grad() = at::Tensor();
  plain.backward(at::ones_like(plain));
  EXPECT_TRUE(same(actual, x.grad()));
}

TEST(Checkpoint, SavesInputsThroughTheScopeAround) {
  const auto x = leaf({4});
  int64_t packed = 0;
  at::Tensor y;
  {
    SavedTensorScope scope(
        [&](const at::Tensor& t) {
          ++packed;
          return t.clone();
        },
        [](const at::Tensor& t) { return t; });
    y = checkpoint(chain, x * 1);
  }
  EXPECT_EQ(packed, 1);
  y.sum().backward();
  const auto z = x.detach().clone().requires_grad_(true);
  chain(z * 1).sum().backward();
  EXPECT_TRUE(same(x.grad(), z.grad()));
}

TEST(Checkpoint, ABlockMayReturnItsInputAndSaveNothing) {
  const auto x = leaf({3});
  const auto y = checkpoint([](const at::Tensor& t) { return t; }, x);
  EXPECT_TRUE(y.is_same(x));
  checkpoint([](const at::Tensor& t) { return t + 1; }, x).sum().backward();
  EXPECT_TRUE(same(x.grad(), at::ones({3})));
}

TEST(Checkpoint, WorksWithoutAnythingToLearn) {
  const auto x = at::randn({3});
  EXPECT_FALSE(checkpoint(chain, x).requires_grad());
  EXPECT_EQ(checkpoint([] { return 3; }), 3);
  int calls = 0;
  checkpoint([&calls](const at::Tensor&) { ++calls; }, x);
  EXPECT_EQ(calls, 1);
}

TEST(Checkpoint, TakesUndefinedAndEmptyTensors) {
  const auto x = leaf({0, 3});
  const auto block = [](const at::Tensor& a, const at::Tensor& none) {
    EXPECT_FALSE(none.defined());
    return std::make_pair(a.exp().sin(), at::Tensor());
  };
  const auto [y, nothing] = checkpoint(block, x, at::Tensor());
  EXPECT_FALSE(nothing.defined());
  y.sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
}

TEST(Checkpoint, TakesAnInferenceTensor) {
  at::Tensor mask;
  {
    const c10::InferenceMode inference;
    mask = at::ones({3});
  }
  const auto x = leaf({3});
  const auto y =
      checkpoint([](const at::Tensor& t, const at::Tensor& m) { return (t + m).exp(); }, x, mask);
  y.sum().backward();
  EXPECT_TRUE(same(x.grad(), (x.detach() + 1).exp()));
}

TEST(Checkpoint, GivesAStatefulCallableItsFirstStateAgain) {
  const auto x = leaf({4});
  const auto y = checkpoint(
      [count = 0](const at::Tensor& t) mutable { return ++count == 1 ? chain(t) : t.exp(); }, x);
  y.sum().backward({}, true);
  y.sum().backward();
  const auto z = x.detach().clone().requires_grad_(true);
  chain(z).sum().backward();
  EXPECT_TRUE(same(x.grad(), z.grad() * 2));
}

TEST(Checkpoint, ABlockMayCatchEverything) {
  const auto x = leaf({4});
  const auto y = checkpoint(
      [](const at::Tensor& t) {
        try {
          return chain(t);
        } catch (...) {
          return t.tanh();
        }
      },
      x);
  y.sum().backward();
  const auto z = x.detach().clone().requires_grad_(true);
  chain(z).sum().backward();
  EXPECT_TRUE(same(x.grad(), z.grad()));
}

TEST(Checkpoint, InPlaceOpsInsideWork) {
  const auto x = leaf({6});
  const auto block = [](const at::Tensor& t) { return (t * 2).mul_(3).add_(1).sigmoid_(); };
  expect_same_gradients(
      {x}, [&] { return block(x * 1).sum(); }, [&] { return checkpoint(block, x * 1).sum(); });
  // In place on what the input may be changed into: allowed and forbidden as in the forward pass.
  const auto view = [](const at::Tensor& t) { return t.clone().view({2, 3}).exp_().sum(1); };
  expect_same_gradients(
      {x}, [&] { return view(x).sum(); }, [&] { return checkpoint(view, x).sum(); });
}

TEST(Checkpoint, FindsTheTensorsOfMapsAndOwnTypes) {
  const auto x = leaf({3});
  const auto h = x * 1;
  const auto y =
      checkpoint([](const std::map<std::string, at::Tensor>& m) { return m.at("x").exp(); },
                 std::map<std::string, at::Tensor>{{"x", h}});
  const MemoryMeter meter;
  y.sum().backward();
  EXPECT_TRUE(same(x.grad(), x.detach().exp()));
}

TEST(Checkpoint, VerifyPassesWhatRepeats) {
  nn::Sequential block(nn::Linear(8, 16), nn::GELU(), nn::Dropout(0.4), nn::Linear(16, 8));
  const auto x = leaf({5, 8});
  expect_same_gradients(
      {x}, [&] { return block->forward(x.t().contiguous().t()).square().sum(); },
      [&] { return checkpoint({.verify = true}, block, x.t().contiguous().t()).square().sum(); });
}

}  // namespace
}  // namespace torchlore
