#include "torchlore/core/rng.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "support/message.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/device.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using testing::same;

/// Draws of several kinds: the CPU's generator also keeps a half of a Box–Muller pair.
StateDict draws() {
  const auto options = at::TensorOptions(default_device());
  return {{"normal", at::randn({3}, options)},
          {"cpu", at::randn({}, at::kDouble)},
          {"permutation", at::randperm(20, options.dtype(at::kLong))},
          {"dropout", at::dropout(at::ones({50}, options), 0.5, true)}};
}

void expect_same(const StateDict& actual, const StateDict& expected) {
  for (const auto& [name, tensor] : expected) EXPECT_TRUE(same(actual.at(name), tensor)) << name;
}

TEST(RngState, DrawsRepeatAfterRestore) {
  at::randn({});  // leaves the second half of a pair behind
  const auto state = RngState::capture();
  const auto first = draws();
  draws();
  state.restore();
  expect_same(draws(), first);
  state.restore();  // a state can be used again
  expect_same(draws(), first);
}

TEST(RngState, SurvivesSavingAndLoading) {
  const auto state = RngState::capture();
  const auto saved = state.state_dict();
  EXPECT_EQ(saved.size(), 1U + static_cast<size_t>(device_count()));
  EXPECT_TRUE(saved.contains("cpu"));
  const auto first = draws();
  RngState loaded;
  loaded.load_state_dict(saved);
  loaded.restore();
  expect_same(draws(), first);
}

TEST(RngState, AnEmptyOneDoesNothing) {
  const auto before = RngState::capture().state_dict();
  RngState().restore();
  expect_same(RngState::capture().state_dict(), before);
}

TEST(RngState, RefusesForeignStatesAndChangesNothing) {
  const auto before = RngState::capture().state_dict();
  RngState state;
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              state.load_state_dict({{"gpu!", at::zeros({3}, at::kByte)}});
            }),
            "the random state's key 'gpu!' names no device; expected 'cpu', 'cuda:0', …");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              state.load_state_dict({{"cpu", at::zeros({3})}});
            }),
            "the random state of cpu must be a one-dimensional uint8 tensor on the CPU");
  state.load_state_dict({{"cpu", at::zeros({3}, at::kByte)}});
  EXPECT_EQ(message_of<c10::ValueError>([&] { state.restore(); }),
            "the random state of cpu has 3 bytes, but this LibTorch's generator has " +
                std::to_string(before.at("cpu").numel()) + "; it was saved by another release");
  // The right size, but no state of a Mersenne twister.
  state.load_state_dict({{"cpu", at::zeros_like(before.at("cpu"))}});
  EXPECT_EQ(message_of<c10::ValueError>([&] { state.restore(); }),
            "the random state is not one that a generator can take; all generators stay as they "
            "were");
  expect_same(RngState::capture().state_dict(), before);
}

TEST(RngState, RefusesTheStateOfAMissingDevice) {
  auto saved = RngState::capture().state_dict();
  saved["cuda:99"] = at::zeros({16}, at::kByte);
  RngState state;
  state.load_state_dict(saved);
  EXPECT_EQ(message_of<c10::ValueError>([&] { state.restore(); }),
            "the random state is of cuda:99, which this machine lacks");
}

TEST(RngScope, LeavesNoTrace) {
  const auto before = RngState::capture();
  const auto first = draws();
  before.restore();
  {
    const RngScope scope;
    draws();
  }
  expect_same(draws(), first);
}

TEST(RngScope, RestoresWhenAnExceptionPasses) {
  const auto before = RngState::capture().state_dict();
  try {
    const RngScope scope;
    draws();
    throw std::runtime_error("passes");
  } catch (const std::runtime_error&) {
  }
  expect_same(RngState::capture().state_dict(), before);
}

}  // namespace
}  // namespace torchlore
