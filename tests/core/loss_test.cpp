#include "torchlore/core/loss.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "support/message.hpp"

namespace torchlore {
namespace {

static_assert(LossLike<at::Tensor> && LossLike<const at::Tensor&> && LossLike<Loss>);
static_assert(!LossLike<double>);
static_assert(LossFunction<at::Tensor (*)()>);
static_assert(LossFunction<Loss (*)(int), int>);
static_assert(!LossFunction<void (*)()>);
static_assert(!LossFunction<at::Tensor (*)(int)>);

TEST(Count, IsANumberOrATensor) {
  EXPECT_TRUE(Count(3).on_host());
  EXPECT_EQ(Count(size_t{3}).value(), 3);
  EXPECT_EQ(Count(3).tensor().item<double>(), 3.0);
  const Count counted(at::full({1}, 5, at::kLong));
  EXPECT_FALSE(counted.on_host());
  EXPECT_EQ(counted.value(), 5);
  EXPECT_EQ(counted.tensor().dim(), 0);
  EXPECT_EQ(counted.tensor().scalar_type(), at::kDouble);
}

TEST(Count, MustBeOneNumber) {
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Count(at::ones({2})); }),
            "a count must be one number, but has shape [2]");
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { Count(at::Tensor()); }),
            "a count must be one number, but is an undefined tensor");
}

}  // namespace
}  // namespace torchlore
