#include "torchlore/core/module_state.hpp"

#include <ATen/ops/arange.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

/// A projection without bias whose weight also serves as the head's.
struct TiedImpl : torch::nn::Module {
  TiedImpl() {
    first = register_module("first", torch::nn::Linear(torch::nn::LinearOptions(3, 3).bias(false)));
    norm = register_module("norm", torch::nn::BatchNorm1d(3));
    head = register_parameter("head", first->weight);
  }
  torch::nn::Linear first{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  at::Tensor head;
};

std::vector<std::string> keys(const StateDict& state) {
  std::vector<std::string> result;
  for (const auto& [key, tensor] : state) result.push_back(key);
  return result;
}

TEST(ModuleState, ListsParametersAndBuffersWithTiedWeightsOnce) {
  const TiedImpl model;
  EXPECT_EQ(keys(module_state_dict(model)),
            (std::vector<std::string>{"head", "norm.bias", "norm.num_batches_tracked",
                                      "norm.running_mean", "norm.running_var", "norm.weight"}));
}

TEST(ModuleState, SharesMemoryWithTheModule) {
  TiedImpl model;
  EXPECT_TRUE(module_state_dict(model).at("head").is_alias_of(model.head));
  EXPECT_FALSE(module_state_dict(model).at("head").requires_grad());
}

TEST(ModuleState, LoadsInPlaceAndKeepsTheTie) {
  TiedImpl model;
  const void* const address = model.first->weight.data_ptr();
  auto state = module_state_dict(model);
  for (auto& [key, tensor] : state) tensor = at::full_like(tensor, 7);
  load_module_state_dict(model, state);
  EXPECT_EQ(model.first->weight.data_ptr(), address);
  EXPECT_TRUE(model.head.is_same(model.first->weight));
  EXPECT_TRUE(model.head.requires_grad());
  EXPECT_TRUE(same(model.head.detach(), at::full_like(model.head, 7).detach()));
  EXPECT_EQ(model.norm->num_batches_tracked.item<int64_t>(), 7);
}

TEST(ModuleState, LoadsIntoStridedParameters) {
  torch::nn::Linear linear(2, 3);
  linear->weight.set_data(at::zeros({2, 3}).t());
  auto state = module_state_dict(*linear);
  state.at("weight") = at::arange(6, at::kFloat).view({3, 2});
  load_module_state_dict(*linear, state);
  EXPECT_EQ(linear->weight.stride(0), 1);
  EXPECT_TRUE(same(linear->weight.detach(), at::arange(6, at::kFloat).view({3, 2})));
}

TEST(ModuleState, LeavesOutUndefinedTensors) {
  torch::nn::BatchNorm1d norm(
      torch::nn::BatchNormOptions(3).affine(false).track_running_stats(false));
  EXPECT_TRUE(module_state_dict(*norm).empty());
}

TEST(ModuleState, NamesEveryDifferenceAndChangesNothing) {
  torch::nn::Linear linear(2, 3);
  const auto before = linear->weight.detach().clone();
  const StateDict other{{"weight", at::zeros({3, 4}, at::kDouble)}, {"scale", at::zeros({1})}};
  EXPECT_EQ(message_of<c10::ValueError>([&] { load_module_state_dict(*linear, other); }),
            "the saved state does not fit the module, and nothing was changed; 4 differences:\n"
            "  bias: missing in the saved state\n"
            "  weight: shape [3, 4] in the saved state, [3, 2] here\n"
            "  weight: dtype Double in the saved state, Float here\n"
            "  scale: only in the saved state");
  EXPECT_TRUE(same(linear->weight.detach(), before));
}

TEST(ModuleState, ListsTenDifferencesAndCountsTheRest) {
  torch::nn::Linear linear(torch::nn::LinearOptions(1, 1).bias(false));
  StateDict state = module_state_dict(*linear);
  for (char i = 'a'; i < 'm'; ++i) state.emplace(std::string("x") + i, at::zeros({}));
  EXPECT_EQ(message_of<c10::ValueError>([&] { load_module_state_dict(*linear, state); }),
            "the saved state does not fit the module, and nothing was changed; 12 differences:\n"
            "  xa: only in the saved state\n"
            "  xb: only in the saved state\n"
            "  xc: only in the saved state\n"
            "  xd: only in the saved state\n"
            "  xe: only in the saved state\n"
            "  xf: only in the saved state\n"
            "  xg: only in the saved state\n"
            "  xh: only in the saved state\n"
            "  xi: only in the saved state\n"
            "  xj: only in the saved state\n"
            "  and 2 more");
}

TEST(ModuleState, RefusesATensorThatCannotBeWritten) {
  torch::nn::Module module;
  module.register_buffer("mask", at::ones({1}).expand({4}));
  EXPECT_EQ(message_of<c10::ValueError>([&] { module_state_dict(module); }),
            "'mask' cannot be restored in place, because its elements share memory (an expanded "
            "tensor); register a contiguous() copy of it");
}

}  // namespace
}  // namespace torchlore
