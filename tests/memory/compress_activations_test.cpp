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

TEST(CompressActivations, Int8KeepsSigns) {
  const auto w = leaf({9, 33});
  at::Tensor loss;
  {
    CompressActivations compress(at::kChar, kAll);
    const auto h = w * -3;
    loss = (h * h).sum();
  }
  loss.backward();
  EXPECT_TRUE(close(w.grad(), (-6 * int8_by_rows(w.detach() * -3)).to(at::kFloat)));
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

TEST(CompressActivations, TellsPartsOfAStorageApart) {
  const auto w = leaf({4, 8});
  const auto f = [](const at::Tensor& h) {
    auto sum = h.narrow(0, 0, 2).sin().sum();
    sum = sum + h.narrow(1, 0, 4).cos().sum();   // the same length at the same place, with gaps
    sum = sum + h.narrow(0, 2, 2).cos().sum();   // the same length elsewhere
    return sum + h.narrow(0, 0, 3).sin().sum();  // another length
  };
  f(w * 1).backward();
  const auto expected = w.grad().clone();
  w.mutable_grad() = at::Tensor();
  at::Tensor loss;
  {
    CompressActivations compress(at::kHalf, kAll);
    loss = f(w * 1);
  }
  loss.backward();
  EXPECT_TRUE(at::allclose(w.grad(), expected, 2e-3, 2e-3));
}

TEST(CompressActivations, TakesTheStorageOfAnExpandedTensorOnce) {
  // Ten values, of which seven are repeated eight times: the last row of int8 is a short one.
  const auto w = leaf({10});
  at::Tensor loss;
  {
    CompressActivations compress(at::kChar, kAll);
    const auto h = (w * 1).narrow(0, 2, 7).view({1, 7}).expand({8, 7});
    loss = (h * h).sum();
    EXPECT_EQ(compress.stats().original_bytes, 10 * 4);
  }
  loss.backward();
  const auto values =
      at::cat({int8_by_rows(w.detach().narrow(0, 0, 7)), int8_by_rows(w.detach().narrow(0, 7, 3))});
  const auto inside = at::cat({at::zeros(2), at::ones(7), at::zeros(1)});
  EXPECT_TRUE(close(w.grad(), (16 * values * inside).to(at::kFloat)));
}

TEST(CompressActivations, LeavesWhatIsNarrowAlready) {
  const auto w = leaf({8, 8}, at::kBFloat16);
  CompressActivations compress(at::kHalf, kAll);
  const auto y = w.exp();
  EXPECT_EQ(compress.stats().tensors, 0);
  CompressActivations bytes(at::kChar, kAll);
  const auto z = w.exp();
  EXPECT_EQ(bytes.stats().tensors, 1);
}

TEST(CompressActivations, AChangedTensorIsTakenAgain) {
  const auto w = leaf({8, 8});
  at::Tensor loss;
  at::Tensor h;  // alive outside the scope, but no longer what was saved first
  {
    CompressActivations compress(at::kBFloat16, kAll);
    h = w * 1;
    auto a = h.sin();  // saves h
    h.add_(1);
    loss = (a + h.sin()).sum();  // saves h as it is now
    EXPECT_EQ(compress.stats().original_bytes, 2 * 8 * 8 * 4);
  }
  loss.backward();
  const auto before = w.detach().to(at::kBFloat16).to(at::kFloat);
  EXPECT_TRUE(close(w.grad(), before.cos() + h.detach().cos()));
}

TEST(CompressActivations, LeavesParametersTheBatchAndSmallTensorsAlone) {
  const auto w = leaf({32, 16});
  const auto x = at::randn({8, 16});
  const auto tiny = leaf({2});
  at::Tensor loss;
  ActivationCopies stats;
  {
    CompressActivations compress(at::kBFloat16, {.min_bytes = 64});
    const auto h = x.exp().requires_grad_();
    loss = (h * 1).mm(w.t()).sum() + x.mm(w.t()).sum() + tiny.exp().sum();
    stats = compress.stats();
  }
  EXPECT_EQ(stats.tensors, 2);  // h * 1, and x until the scope's end; w never
  loss.backward();
  const auto rounded = x.exp().to(at::kBFloat16).to(at::kFloat);
  EXPECT_TRUE(close(w.grad(), at::ones({32, 8}).mm(rounded) + at::ones({32, 8}).mm(x)));
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
