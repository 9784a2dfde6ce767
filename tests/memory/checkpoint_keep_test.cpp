// Selective checkpointing: the results of chosen ops are kept.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/transformerlayer.h>

#include <map>

#include "checkpoint_support.hpp"
#include "support/message.hpp"
#include "torchlore/intercept/op_mode.hpp"
#include "torchlore/intercept/saved_tensor_scope.hpp"
#include "torchlore/memory/checkpoint.hpp"
#include "torchlore/memory/memory_meter.hpp"
#include "torchlore/precision/autocast.hpp"

namespace torchlore {
namespace {

using testing::expect_same_gradients;
using testing::leaf;
using testing::message_of;
using testing::same;
namespace nn = torch::nn;

const CheckpointOptions kKeepMatmuls{.keep = keep_matmuls()};

TEST(CheckpointKeep, GradientsAreThoseOfThePlainCall) {
  nn::TransformerEncoderLayer layer(
      nn::TransformerEncoderLayerOptions(16, 4).dim_feedforward(32).dropout(0.2));
  const auto x = leaf({5, 3, 16});
  auto tensors = layer->parameters();
  tensors.push_back(x);
  for (const bool amp : {false, true}) {
    const auto under = [&](const auto& forward) {
      const Autocast scope(at::kCPU, at::kBFloat16, {.enabled = amp});
      return forward().to(at::kFloat).square().sum();
    };
    expect_same_gradients(
        tensors, [&] { return under([&] { return layer->forward(x); }); },
        [&] { return under([&] { return checkpoint(kKeepMatmuls, layer, x); }); });
  }
}

TEST(CheckpointKeep, ConvolutionsInPlaceReluAndDoubleBackward) {
  nn::Sequential block(nn::Conv2d(nn::Conv2dOptions(2, 4, 3)), nn::ReLU(nn::ReLUOptions(true)),
                       nn::Conv2d(nn::Conv2dOptions(4, 3, 3)), nn::Tanh());
  const auto x = leaf({2, 2, 8, 8});
  auto tensors = block->parameters();
  tensors.push_back(x);
  expect_same_gradients(
      tensors, [&] { return block->forward(x).square().sum(); },
      [&] { return checkpoint(kKeepMatmuls, block, x).square().sum(); });
  const auto penalty = [&](const at::Tensor& y) {
    const auto g = torch::autograd::grad({y.square().sum()}, {x}, {}, std::nullopt, true)[0];
    return g.square().sum() + y.sum();
  };
  expect_same_gradients(
      tensors, [&] { return penalty(block->forward(x)); },
      [&] { return penalty(checkpoint(kKeepMatmuls, block, x)); });
}

/// Counts how often each op's kernel is called, by its name.
struct Counting {
  std::shared_ptr<std::map<std::string, int>> counts =
      std::make_shared<std::map<std::string, int>>();
  std::function<bool(const std::string&)> policy(bool keep) const {
    return [counts = counts, keep](const std::string& op) {
      ++(*counts)[op];
      return keep && op == "aten::mm";
    };
  }
};

TEST(CheckpointKeep, KeptOpsAreNotRunAgain) {
  const auto a = leaf({256, 256});
  const auto w = leaf({256, 256});
  const auto block = [w](const at::Tensor& t) { return t.mm(w).sin().mm(w).exp(); };
  Counting names;
  MemoryMeter meter;
  auto y = checkpoint({.keep = names.policy(true)}, block, a);
  // The two products and the output.
  EXPECT_NEAR(static_cast<double>(meter.current().count()), 3 * 256 * 256 * 4, 20'000);
  EXPECT_EQ(names.counts->count("aten::mm"), 1U);  // asked once for each op's name
  EXPECT_EQ(names.counts->count("aten::sin"), 1U);
  // NaN planted in the weights after the fact would show if a product were computed again; their
  // version says they are as before.
  y.sum().backward({}, true);
  const auto first = a.grad().clone();
  y.sum().backward();
  EXPECT_TRUE(same(a.grad(), first * 2));
}

TEST(CheckpointKeep, TheKeptResultIsUsed) {
  const auto x = leaf({4, 4});
  const auto factor = std::make_shared<double>(1);
  // The product's value depends on what changes before backward, but is kept.
  const auto block = [factor](const at::Tensor& t) {
    const at::Tensor w = at::full({4, 4}, *factor);
    return t.mm(w).sin();
  };
  const auto y =
      checkpoint({.keep = [](const std::string& op) { return op == "aten::mm"; }}, block, x);
  const auto z = x.detach().clone().requires_grad_(true);
  const auto w = at::full({4, 4}, 1.0);
  const auto expected = torch::autograd::grad({z.mm(w).sin().sum()}, {z})[0];
  *factor = 2;
  const auto actual = torch::autograd::grad({y.sum()}, {x})[0];
  // cos of the kept product, times the new weights.
  EXPECT_TRUE(testing::close(actual, expected * 2));
}

TEST(CheckpointKeep, RandomOpsAndViewsAreRunAgainWhateverThePolicySays) {
  nn::Sequential layers(nn::Linear(8, 16), nn::Dropout(0.4), nn::Linear(16, 8), nn::Dropout(0.4));
  const auto x = leaf({5, 8});
  auto tensors = layers->parameters();
  tensors.push_back(x);
  const auto block = [layers](const at::Tensor& t) mutable {
    return layers->forward(t * at::bernoulli(at::full({5, 8}, 0.5))).view({8, 5});
  };
  const CheckpointOptions all{.keep = [](const std::string&) { return true; }};
  expect_same_gradients(
      tensors,
      [&] {
        auto plain = block;
        return plain(x).square().sum();
      },
      [&] { return checkpoint(all, block, x).square().sum(); });
}

TEST(CheckpointKeep, NestsAndGoesThroughTheScopeAround) {
  nn::Sequential inner(nn::Linear(6, 6), nn::Dropout(0.5), nn::Tanh(), nn::Linear(6, 6));
  const auto x = leaf({4, 6});
  auto tensors = inner->parameters();
  tensors.push_back(x);
  const auto plain = [&] { return inner->forward(inner->forward(x.sin())).square().sum(); };
  for (const bool outside : {false, true}) {
    for (const bool inside : {false, true}) {
      expect_same_gradients(tensors, plain, [&] {
        return checkpoint(
                   outside ? kKeepMatmuls : CheckpointOptions{},
                   [inner, inside](const at::Tensor& t) {
                     const auto& options = inside ? kKeepMatmuls : CheckpointOptions{};
                     return checkpoint(options, inner, checkpoint(options, inner, t.sin()));
                   },
                   x)
            .square()
            .sum();
      });
    }
  }
  expect_same_gradients(tensors, plain, [&] {
    const SavedTensorScope scope([](const at::Tensor& t) { return t.to(at::kDouble); },
                                 [](const at::Tensor& t) { return t.to(at::kFloat); });
    return checkpoint(
               kKeepMatmuls,
               [inner](const at::Tensor& t) mutable {
                 return inner->forward(inner->forward(t.sin()));
               },
               x)
        .square()
        .sum();
  });
}

TEST(CheckpointKeep, TellsWhenTheBlockCallsOtherOps) {
  const auto x = leaf({4, 4});
  const auto first = std::make_shared<bool>(true);
  const auto loss = checkpoint(
      kKeepMatmuls,
      [first](const at::Tensor& t) {
        const auto h = *first ? t.mm(t) : at::addmm(at::zeros({4}), t, t);
        return h.exp().sum();
      },
      x);
  *first = false;
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "a checkpointed block calls aten::addmm when it is recomputed, where the forward pass "
            "called aten::mm. The block must do the same again: let it depend on nothing that "
            "changes before backward");
}

TEST(CheckpointKeep, OutputsMayBeChangedByWhoGetsThem) {
  const auto x = leaf({4, 4});
  const auto run = [&](const auto& call) {
    auto [h, y] = call([](const at::Tensor& t) {
      const auto product = t.mm(t);
      return std::make_pair(product, product.view({2, 8}).sum() + product.exp().sum());
    });
    return y + h.add_(1).sum();
  };
  expect_same_gradients(
      {x}, [&] { return run([&](auto block) { return block(x); }); },
      [&] { return run([&](auto block) { return checkpoint(kKeepMatmuls, block, x); }); });
}

TEST(CheckpointKeep, NothingIsLeftBehind) {
  const auto x = leaf({64, 64});
  const MemoryMeter meter;
  {
    auto y = checkpoint(
        kKeepMatmuls, [](const at::Tensor& t) { return t.mm(t).exp().mm(t); }, x);
    y.sum().backward();
  }
  x.mutable_grad() = at::Tensor();
  EXPECT_EQ(meter.current(), Bytes(0));
}

}  // namespace
}  // namespace torchlore
