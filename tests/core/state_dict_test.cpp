#include "torchlore/core/state_dict.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "support/message.hpp"

namespace torchlore {
namespace {

TEST(StateDict, HoldsNumbersAsTensors) {
  const StateDict state{{"lr", state_value(0.1)}, {"step", state_value(int64_t{1} << 60)}};
  EXPECT_EQ(state_double(state, "lr"), 0.1);
  EXPECT_EQ(state_int(state, "step"), int64_t{1} << 60);
  EXPECT_EQ(state.at("lr").scalar_type(), at::kDouble);
}

TEST(StateDict, ReadsNumbersOfAnyDtype) {
  const StateDict state{{"a", at::full({1}, 3, at::kInt)}, {"b", at::full({}, 0.5f)}};
  EXPECT_EQ(state_int(state, "a"), 3);
  EXPECT_EQ(state_double(state, "a"), 3.0);
  EXPECT_EQ(state_double(state, "b"), 0.5);
}

TEST(StateDict, NamesWhatIsMissing) {
  const StateDict state{{"a", at::ones({})}, {"b", at::ones({2})}};
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { state_int(state, "scale"); }),
            "the saved state has no 'scale'; it has: a, b");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { state_double(state, "b"); }),
            "'b' of the saved state must be one number, but has shape [2]");
}

}  // namespace
}  // namespace torchlore
