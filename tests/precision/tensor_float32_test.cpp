#include "torchlore/precision/tensor_float32.hpp"

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <utility>

namespace torchlore {
namespace {

TEST(TensorFloat32, DoesNothingWithoutCudaAndSaysWhy) {
  if (at::hasCUDA()) GTEST_SKIP() << "there is CUDA";
  const auto before = at::globalContext().allowTF32CuDNN();
  {
    const TensorFloat32 off(!before);
    EXPECT_FALSE(off.active());
    EXPECT_STREQ(off.reason(), "this machine, or this build of LibTorch, has no CUDA device");
    EXPECT_EQ(at::globalContext().allowTF32CuDNN(), before);
  }
}

TEST(TensorFloat32, SetsAndRestoresInReverseOrder) {
  if (!at::hasCUDA()) GTEST_SKIP() << "there is no CUDA";
  const auto now = [] {
    return std::pair(at::globalContext().allowTF32CuBLAS(), at::globalContext().allowTF32CuDNN());
  };
  const auto before = now();
  {
    const TensorFloat32 on;
    EXPECT_TRUE(on.active());
    EXPECT_STREQ(on.reason(), "");
    EXPECT_EQ(now(), std::pair(true, true));
    {
      const TensorFloat32 off(false);
      EXPECT_EQ(now(), std::pair(false, false));
    }
    EXPECT_EQ(now(), std::pair(true, true));
  }
  EXPECT_EQ(now(), before);
}

}  // namespace
}  // namespace torchlore
