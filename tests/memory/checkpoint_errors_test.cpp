#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <stdexcept>

#include "checkpoint_support.hpp"
#include "support/message.hpp"
#include "torchlore/core/rng.hpp"
#include "torchlore/memory/checkpoint.hpp"

namespace torchlore {
namespace {

using testing::leaf;
using testing::message_of;
using testing::same;
namespace nn = torch::nn;

/// True in the forward pass, false in the recomputation.
std::shared_ptr<bool> first_time() { return std::make_shared<bool>(true); }

TEST(CheckpointErrors, NameTheInputThatWasChangedInPlace) {
  const auto x = leaf({3});
  const auto h = x * 2;
  const auto loss = checkpoint([](double, const at::Tensor& t) { return t.exp().sum(); }, 1.0, h);
  h.detach().zero_();
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "argument 1 of a checkpointed block was changed in place between the forward pass and "
            "backward (it is at version 1, expected 0), so the block cannot be recomputed. Change "
            "it out of place, or after backward");
}

TEST(CheckpointErrors, RefuseABlockThatChangesItsInput) {
  const auto x = leaf({3});
  EXPECT_EQ(
      message_of([&] { checkpoint([](const at::Tensor& t) { return t.mul_(2).exp(); }, x * 2); }),
      "a checkpointed block changed its argument 0 in place, so it cannot be recomputed. Let "
      "the block work on a copy (x.clone()), or out of place");
}

TEST(CheckpointErrors, NameTheTensorWhoseShapeDiffers) {
  const auto x = leaf({3, 4});
  const auto first = first_time();
  const auto loss = checkpoint(
      [first](const at::Tensor& t) {
        const auto h = *first ? t.sin() : t.slice(0, 0, 2).sin();
        return h.exp().sum();
      },
      x);
  *first = false;
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "tensor 1 of 2 that a checkpointed block saves for backward was Float [3, 4] on cpu "
            "with a gradient in the forward pass, but is Float [2, 4] on cpu with a gradient when "
            "it is recomputed. The block must do the same again: let it depend on nothing that "
            "changes before backward, and freeze parameters before the forward pass");
}

TEST(CheckpointErrors, TellWhenLessIsSaved) {
  const auto x = leaf({3});
  const auto first = first_time();
  const auto loss = checkpoint(
      [first](const at::Tensor& t) { return (*first ? t.sin().exp() : t.sin()).sum(); }, x);
  *first = false;
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "a checkpointed block saved 2 tensors for backward in the forward pass, but 1 when it "
            "was recomputed. The block must do the same again: let it depend on nothing that "
            "changes before backward, and freeze parameters before the forward pass");
}

TEST(CheckpointErrors, VerifyFindsOtherValuesAndMoreTensors) {
  const auto x = leaf({3});
  const auto first = first_time();
  auto loss = checkpoint(
      {.verify = true},
      [first](const at::Tensor& t) { return (*first ? t * 2 : t * 3).exp().sum(); }, x);
  *first = false;
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "tensor 1 of 1 that a checkpointed block saves for backward (Float [3] on cpu with a "
            "gradient) has other values when it is recomputed. The block must do the same again: "
            "draw random numbers from LibTorch's generators with preserve_rng on, and use "
            "deterministic ops");
  *first = true;
  loss = checkpoint(
      {.verify = true},
      [first](const at::Tensor& t) { return (*first ? t.exp() : t.exp().exp()).sum(); }, x);
  *first = false;
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "a checkpointed block saved 1 tensors for backward in the forward pass, but 2 when it "
            "was recomputed. The block must do the same again: let it depend on nothing that "
            "changes before backward, and freeze parameters before the forward pass");
}

TEST(CheckpointErrors, RandomNumbersThatAreNotRepeatedAreFoundByVerify) {
  const auto x = leaf({64});
  const auto loss = checkpoint(
      {.preserve_rng = false, .verify = true},
      [](const at::Tensor& t) { return at::dropout(t, 0.5, true).sum(); }, x);
  EXPECT_THROW(loss.backward(), c10::Error);
}

TEST(CheckpointErrors, NameTheParameterThatWasSteppedFrozenOrMoved) {
  nn::Sequential block(nn::Linear(4, 4), nn::GELU(), nn::Linear(4, 4));
  const auto loss = [&] { return checkpoint(block, leaf({2, 4})).sum(); };
  auto stepped = loss();
  const auto bias = block->named_parameters()["2.bias"];  // no op saves a bias
  const auto version = bias._version();
  bias.detach().add_(1);
  EXPECT_EQ(message_of([&] { stepped.backward(); }),
            c10::str("parameter '2.bias' of a checkpointed block was changed in place between the "
                     "forward pass and backward (it is at version ",
                     version + 1, ", expected ", version, "). Step the optimizer after backward"));
  auto frozen = loss();
  block->named_parameters()["0.weight"].set_requires_grad(false);
  EXPECT_EQ(message_of([&] { frozen.backward(); }),
            "parameter '0.weight' of a checkpointed block ceased to require a gradient between the "
            "forward pass and backward. Freeze parameters before the forward pass, or after "
            "backward");
  auto thawed = loss();
  block->named_parameters()["0.weight"].set_requires_grad(true);
  EXPECT_EQ(message_of([&] { thawed.backward(); }),
            "parameter '0.weight' of a checkpointed block began to require a gradient between the "
            "forward pass and backward. Freeze parameters before the forward pass, or after "
            "backward");
  auto moved = loss();
  block->to(at::kDouble);
  EXPECT_EQ(message_of([&] { moved.backward(); }),
            "parameter '0.weight' of a checkpointed block was replaced or moved between the "
            "forward pass and backward. Do it before the forward pass, or after backward");
}

TEST(CheckpointErrors, ACapturedTensorThatWasChangedIsFound) {
  const auto w = at::ones({4, 4}).requires_grad_(true);
  const auto loss =
      checkpoint([w](const at::Tensor& t) { return t.sin().mm(w).sum(); }, leaf({2, 4}));
  const auto version = w._version();
  w.detach().add_(1);
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            c10::str("tensor 2 of 3 that a checkpointed block saves for backward (Float [4, 4] on "
                     "cpu with a gradient) is at version ",
                     version + 1, " when it is recomputed, but was at version ", version,
                     " in the forward pass: a parameter, or a tensor that the block holds, was "
                     "changed in place in between. Step the optimizer after backward"));
}

TEST(CheckpointErrors, WhatAutogradForbidsInPlaceStaysForbidden) {
  const auto x = at::ones({6}).requires_grad_(true);
  const auto block = [](const at::Tensor& t) { return (t * 2).relu_().mul_(3).sigmoid_(); };
  EXPECT_THROW(block(x).sum().backward(), c10::Error);
  const auto loss = checkpoint(block, x).sum();
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "one of the variables needed for gradient computation has been modified by an inplace "
            "operation in a checkpointed block: tensor 1 of 2 that it saves (Float [6] on cpu with "
            "a gradient) is at version 3; expected version 1 instead. Change it out of place");
}

TEST(CheckpointErrors, AFrozenCapturedTensorIsFound) {
  const auto w = leaf({4, 4});
  const auto loss = checkpoint([w](const at::Tensor& t) { return t.mm(w).sum(); }, leaf({4, 4}));
  w.set_requires_grad(false);
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "tensor 1 of 2 that a checkpointed block saves for backward was Float [4, 4] on cpu "
            "with a gradient in the forward pass, but is Float [4, 4] on cpu when it is "
            "recomputed. The block must do the same again: let it depend on nothing that changes "
            "before backward, and freeze parameters before the forward pass");
}

TEST(CheckpointErrors, RefuseToForgetALargeBuffer) {
  const auto buffer = at::zeros({600, 600});
  const auto block = [buffer](const at::Tensor& t) {
    buffer.add_(1);
    return t.exp();
  };
  EXPECT_EQ(message_of<c10::NotImplementedError>(
                [&] { checkpoint({.buffers = {buffer}}, block, leaf({3})); }),
            "a checkpointed block changed a buffer of 1.37 MiB in place; buffers above 1 MiB are "
            "not brought back for the recomputation. Change it outside of the block, or pass "
            "{.keep_buffers = false}");
}

TEST(CheckpointErrors, WhatTheBlockThrowsComesOutTypedAndLeavesAllAsItWas) {
  struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  const auto x = leaf({8});
  const auto first = first_time();
  const auto block = [first](const at::Tensor& t) {
    const auto h = at::dropout(t.exp(), 0.5, true);
    if (!*first) throw Failure("second time");
    return h.sin().sum();
  };
  const auto loss = checkpoint(block, x);
  *first = false;
  const auto before = RngState::capture().state_dict().at("cpu");
  EXPECT_THROW(loss.backward({}, true), Failure);
  EXPECT_TRUE(same(RngState::capture().state_dict().at("cpu"), before));
  EXPECT_TRUE(at::GradMode::is_enabled());
  *first = true;
  loss.backward();  // the graph is still good
  const auto actual = x.grad().clone();
  EXPECT_GT(actual.abs().sum().item<double>(), 0);
  EXPECT_THROW(checkpoint(
                   [](const at::Tensor& t) -> at::Tensor {
                     t.exp();
                     throw Failure("at once");
                   },
                   x),
               Failure);
  x.exp().sum().backward();  // no scope is left behind
}

}  // namespace
}  // namespace torchlore
