#include "torchlore/intercept/saved_tensor_scope.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

at::Tensor leaf() { return at::randn({3, 3}).set_requires_grad(true); }

TEST(SavedTensorScope, PacksAndUnpacksWhatAutogradSaves) {
  const auto w = leaf();
  (w * w).exp().sum().backward();
  const auto plain = w.grad().clone();
  w.mutable_grad() = at::Tensor();
  int64_t packed = 0;
  int64_t unpacked = 0;
  at::Tensor loss;
  {
    SavedTensorScope scope(
        [&](const at::Tensor& t) {
          ++packed;
          return t.to(at::kDouble);
        },
        [&](const at::Tensor& t) {
          ++unpacked;
          return t.to(at::kFloat);
        });
    loss = (w * w).exp().sum();
  }
  EXPECT_EQ(packed, 3);
  EXPECT_EQ(unpacked, 0);
  loss.backward();
  EXPECT_EQ(unpacked, 3);
  EXPECT_TRUE(w.grad().equal(plain));
}

/// Leaves every second tensor alone.
struct EverySecond : SavedTensorHandler {
  int64_t asked = 0;
  std::unique_ptr<PackedTensor> pack(const at::Tensor& tensor) override {
    if (++asked % 2 == 0) return nullptr;
    return SavedTensorScope::save(tensor);
  }
};

TEST(SavedTensorScope, ScopesNestAndPassOn) {
  const auto w = leaf();
  const auto outer = std::make_shared<EverySecond>();
  const auto inner = std::make_shared<EverySecond>();
  at::Tensor loss;
  {
    SavedTensorScope first(outer);
    SavedTensorScope second(inner);
    loss = (w * w).exp().sum();
  }
  EXPECT_EQ(inner->asked, 3);
  EXPECT_EQ(outer->asked, 3);
  loss.backward();
  EXPECT_TRUE(w.grad().allclose(2 * w.detach() * (w.detach() * w.detach()).exp()));
}

TEST(SavedTensorScope, ATensorLeftAloneIsStillCheckedForChanges) {
  const auto w = leaf();
  at::Tensor loss;
  at::Tensor y;
  {
    SavedTensorScope scope(std::make_shared<EverySecond>());
    y = w.sigmoid();
    loss = y.sum();
  }
  y.detach().zero_();
  EXPECT_EQ(message_of([&] { loss.backward(); }),
            "one of the variables needed for gradient computation has been modified by an inplace "
            "operation: [CPUFloatType [3, 3]] is at version 1; expected version 0 instead. Change "
            "it out of place, or after backward");
}

TEST(SavedTensorScope, NothingLeaksWhenTheGraphIsDropped) {
  const auto w = leaf();
  at::Tensor y;
  {
    SavedTensorScope scope(std::make_shared<EverySecond>());
    y = w.exp();
  }
  const c10::weak_intrusive_ptr<c10::StorageImpl> weak = y.storage().getWeakStorageImpl();
  y = at::Tensor();
  EXPECT_TRUE(weak.expired());
}

}  // namespace
}  // namespace torchlore
