#include "torchlore/memory/checkpoint.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/transformerlayer.h>

#include <thread>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;
namespace nn = torch::nn;

/// How often a block ran, wherever it is copied to.
using Runs = std::shared_ptr<int>;

at::Tensor leaf(at::IntArrayRef sizes) { return at::randn(sizes).set_requires_grad(true); }

/// The gradients of `loss()` with respect to the tensors, drawn from the same random numbers.
template <typename Loss>
std::vector<at::Tensor> gradients_of(const std::vector<at::Tensor>& tensors, const Loss& loss) {
  at::manual_seed(3);
  for (const auto& t : tensors) t.mutable_grad() = at::Tensor();
  loss().backward();
  std::vector<at::Tensor> result;
  for (const auto& t : tensors) result.push_back(t.grad().clone());
  return result;
}

/// The same gradients, and the same random numbers after, with and without checkpoint.
template <typename Plain, typename Checkpointed>
void expect_same_gradients(const std::vector<at::Tensor>& tensors, const Plain& plain,
                           const Checkpointed& checkpointed) {
  const auto expected = gradients_of(tensors, plain);
  const auto next = at::rand({});
  const auto actual = gradients_of(tensors, checkpointed);
  EXPECT_TRUE(same(at::rand({}), next));
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(same(actual[i], expected[i])) << i;
}

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

TEST(Checkpoint, NamesTheInputThatWasChangedInPlace) {
  const auto x = leaf({3});
  const auto h = x * 2;
  const auto loss = checkpoint([](double, const at::Tensor& t) { return t.exp().sum(); }, 1.0, h);
  h.detach().zero_();
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "argument 1 of a checkpointed block was changed in place between the forward pass and "
            "backward (it is at version 1, expected 0), so the block cannot be recomputed. Change "
            "it out of place, or after backward");
}

TEST(Checkpoint, RefusesABlockThatChangesItsInput) {
  const auto x = leaf({3});
  EXPECT_EQ(
      message_of([&] { checkpoint([](const at::Tensor& t) { return t.mul_(2).exp(); }, x * 2); }),
      "a checkpointed block changed its argument 0 in place, so it cannot be recomputed. Let "
      "the block work on a copy (x.clone()), or out of place");
}

}  // namespace
}  // namespace torchlore
