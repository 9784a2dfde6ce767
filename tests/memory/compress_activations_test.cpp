#include "torchlore/memory/compress_activations.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <limits>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

using testing::close;
using testing::message_of;
using testing::same;

constexpr CompressOptions kAll{.min_bytes = 0};

at::Tensor leaf(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::randn(sizes, dtype).set_requires_grad(true);
}

/// The gradient of sum(upstream * exp(w)) when exp's result is kept as `dtype`: exp saves its result,
/// and its backward is upstream * result.
struct Exp {
  explicit Exp(at::Tensor input) : w(std::move(input)), upstream(at::randn_like(w)) {}
  at::Tensor gradient(at::ScalarType dtype) {
    at::Tensor loss;
    {
      CompressActivations compress(dtype, kAll);
      loss = (w.exp() * upstream).sum();
      stats = compress.stats();
    }
    loss.backward();
    auto result = w.grad();
    w.mutable_grad() = at::Tensor();
    return result;
  }
  at::Tensor w;
  at::Tensor upstream;
  ActivationCopies stats;
};

TEST(CompressActivations, BackwardSeesBfloat16Activations) {
  Exp exp(leaf({5, 7}));
  const auto result = exp.w.detach().exp().to(at::kBFloat16).to(at::kFloat);
  EXPECT_TRUE(same(exp.gradient(at::kBFloat16), exp.upstream * result));
}

TEST(CompressActivations, BackwardSeesFloat16Activations) {
  Exp exp(leaf({5, 7}, at::kDouble));
  const auto result = exp.w.detach().exp().to(at::kHalf).to(at::kDouble);
  EXPECT_TRUE(same(exp.gradient(at::kHalf), exp.upstream * result));
}

/// The formula of the header, value by value in float64.
at::Tensor int8_by_rows(const at::Tensor& table) {
  const auto rows = table.to(at::kDouble);
  const auto scale = std::get<0>(rows.abs().max(-1, true)) / 127;
  return (rows / scale).round() * scale;
}

TEST(CompressActivations, BackwardSeesInt8ActivationsScaledByRow) {
  for (const auto columns : {2, 7, 8, 300}) {
    Exp exp(leaf({5, columns}));
    const auto result = int8_by_rows(exp.w.detach().exp());
    const auto seen = exp.gradient(at::kChar) / exp.upstream;
    EXPECT_TRUE(close(seen, result.to(at::kFloat))) << columns;
  }
}

TEST(CompressActivations, RowsOfInt8FollowTheMemoryNotTheShape) {
  // The rows of a transposed tensor are its columns.
  const auto w = leaf({4, 6});
  at::Tensor loss;
  {
    CompressActivations compress(at::kChar, kAll);
    loss = w.t().exp().sum();
  }
  loss.backward();
  EXPECT_TRUE(close(w.grad(), int8_by_rows(w.detach().exp()).to(at::kFloat)));
}

TEST(CompressActivations, ARowOfInt8ThatHoldsInfOrNanComesBackAsNan) {
  for (const auto bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    const auto w = leaf({3, 4});
    at::Tensor loss;
    {
      CompressActivations compress(at::kChar, kAll);
      const auto scaled =
          w * at::full({3, 4}, 2.0f).index_put_({at::tensor(1)}, at::full({4}, bad));
      loss = (scaled * scaled).sum();
    }
    loss.backward();
    EXPECT_TRUE(w.grad()[1].isnan().all().item<bool>());
    EXPECT_TRUE(w.grad()[0].isfinite().all().item<bool>());
    EXPECT_TRUE(w.grad()[2].isfinite().all().item<bool>());
  }
}

TEST(CompressActivations, AZeroRowStaysZero) {
  const auto w = at::zeros({2, 4}).set_requires_grad(true);
  at::Tensor loss;
  {
    CompressActivations compress(at::kChar, kAll);
    const auto y = w * 2;
    loss = (y * y).sum();
  }
  loss.backward();
  EXPECT_TRUE(same(w.grad(), at::zeros({2, 4})));
}

TEST(CompressActivations, TakesAStorageOnceHoweverOftenItIsSaved) {
  const auto w = leaf({16, 16});
  CompressActivations compress(at::kBFloat16, kAll);
  const auto h = w * 2;            // saves nothing of its own
  const auto y = h * h + h.sin();  // saves h three times
  const auto z = h.t().cos();      // and once through a view
  const auto stats = compress.stats();
  EXPECT_EQ(stats.tensors, 4);
  EXPECT_EQ(stats.original_bytes, 16 * 16 * 4);
  EXPECT_EQ(stats.encoded_bytes, 16 * 16 * 2);
}

TEST(CompressActivations, AChangedTensorIsTakenAgain) {
  const auto w = leaf({8, 8});
  at::Tensor loss;
  {
    CompressActivations compress(at::kBFloat16, kAll);
    auto h = w * 1;
    auto a = h.sin();  // saves h
    h.add_(1);
    loss = (a + h.sin()).sum();  // saves h as it is now
    EXPECT_EQ(compress.stats().original_bytes, 2 * 8 * 8 * 4);
  }
  loss.backward();
  const auto h = w.detach();
  const auto rounded = [](const at::Tensor& t) { return t.to(at::kBFloat16).to(at::kFloat); };
  EXPECT_TRUE(close(w.grad(), rounded(h).cos() + rounded(h + 1).cos()));
}

TEST(CompressActivations, LeavesParametersTheBatchAndSmallTensorsAlone) {
  const auto w = leaf({32, 16});
  const auto x = at::randn({8, 16});
  const auto tiny = leaf({2});
  at::Tensor loss;
  ActivationCopies before;
  {
    CompressActivations compress(at::kBFloat16, {.min_bytes = 64});
    loss = x.mm(w.t()).sum() + tiny.exp().sum();
    before = compress.stats();
  }
  EXPECT_EQ(before.tensors, 1);  // x, until the scope's end
  loss.backward();
  EXPECT_TRUE(same(w.grad(), at::ones({8, 32}).t().mm(x)));
  EXPECT_TRUE(same(tiny.grad(), tiny.detach().exp()));
}

TEST(CompressActivations, FreesTheOriginal) {
  const auto w = leaf({64, 64});
  at::Tensor y;
  c10::weak_intrusive_ptr<c10::StorageImpl> hidden(c10::Storage().getWeakStorageImpl());
  {
    CompressActivations compress;
    const auto h = w.exp();
    hidden = h.storage().getWeakStorageImpl();
    y = h.sum();
  }
  EXPECT_TRUE(hidden.expired());
  y.backward();
  EXPECT_TRUE(close(w.grad(), w.detach().exp().to(at::kBFloat16).to(at::kFloat)));
}

TEST(CompressActivations, AResidentTensorIsStillCheckedForChanges) {
  const auto w = leaf({4, 4});
  auto x = at::ones({4, 4});
  at::Tensor loss;
  {
    CompressActivations compress(at::kBFloat16, kAll);
    loss = (w * x).sum();
  }
  x.zero_();
  EXPECT_EQ(
      message_of([&] { loss.backward(); }),
      "one of the variables needed for gradient computation has been modified by an inplace "
      "operation: a tensor of 16 elements is at version 2; expected version 1 instead. Change "
      "it out of place, or after backward");
}

TEST(CompressActivations, GivesTheSameInEveryBackward) {
  const auto w = leaf({8, 8});
  at::Tensor loss;
  {
    CompressActivations compress(at::kChar, kAll);
    loss = w.exp().sin().sum();
  }
  loss.backward({}, /*retain_graph=*/true);
  const auto once = w.grad().clone();
  loss.backward();
  EXPECT_TRUE(same(w.grad(), once * 2));
}

TEST(CompressActivations, SaysWhatIsWrong) {
  EXPECT_EQ(message_of([] { CompressActivations compress(at::kInt); }),
            "CompressActivations keeps activations as BFloat16, Half or Char (int8 per row), but "
            "dtype is Int");
  EXPECT_EQ(message_of([] { CompressActivations compress(at::kHalf, {.min_bytes = -1}); }),
            "CompressActivations' min_bytes must be a finite number, 0 or above, but is -1");
}

}  // namespace
}  // namespace torchlore
