#include "torchlore/core/gradient_pass.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../../src/core/kernels/gradient_kernels.hpp"
#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<at::Tensor> mixed_gradients() {
  at::manual_seed(1);
  return {at::randn({3, 5}),
          at::randn({100'003}),
          at::randn({17}).to(at::kHalf),
          at::randn({1'001}).to(at::kBFloat16),
          at::randn({0}),
          at::randn({})};
}

at::Tensor flat_double(at::TensorList grads) {
  std::vector<at::Tensor> flats;
  for (const auto& g : grads) {
    flats.push_back((g.is_sparse() ? g.to_dense() : g).to(at::kDouble).reshape(-1));
  }
  return at::cat(flats);
}

class NormTest : public ::testing::TestWithParam<double> {};

TEST_P(NormTest, EqualsTheNormOfAllElementsInDouble) {
  const auto grads = mixed_gradients();
  const auto stats = gradient_stats(grads, GetParam());
  EXPECT_EQ(stats.norm.scalar_type(), at::kFloat);
  EXPECT_EQ(stats.norm.dim(), 0);
  EXPECT_TRUE(testing::close(stats.norm, at::linalg_vector_norm(flat_double(grads), GetParam())));
  EXPECT_EQ(stats.found_inf.item<float>(), 0);
}

TEST_P(NormTest, SeesOneBadElementAnywhere) {
  for (const double bad : {kInf, -kInf, kNaN}) {
    for (size_t which : {0u, 1u, 2u, 3u, 5u}) {
      auto grads = mixed_gradients();
      auto flat = grads[which].view(-1);
      for (int64_t place : {int64_t{0}, flat.numel() / 2, flat.numel() - 1}) {
        const auto before = flat[place].clone();
        flat[place] = bad;
        const auto stats = gradient_stats(grads, GetParam());
        EXPECT_EQ(stats.found_inf.item<float>(), 1) << bad << " in " << which << " at " << place;
        EXPECT_FALSE(std::isfinite(stats.norm.item<float>()));
        flat[place] = before;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllNorms, NormTest, ::testing::Values(2.0, 1.0, kInf, 3.0, 0.5));

TEST(GradientStats, NormIsDoubleWhenAGradientIs) {
  const auto grads = std::vector<at::Tensor>{at::randn({10}, at::kDouble), at::randn({10})};
  const auto stats = gradient_stats(grads);
  EXPECT_EQ(stats.norm.scalar_type(), at::kDouble);
  EXPECT_TRUE(testing::close(stats.norm, flat_double(grads).norm()));
}

TEST(GradientStats, SquaresThatLeaveTheRangeOfDoubleDoNot) {
  for (const double size : {1e200, 1e-200}) {
    const auto grads = std::vector<at::Tensor>{at::full({4}, size, at::kDouble)};
    const auto stats = gradient_stats(grads);
    EXPECT_NEAR(stats.norm.item<double>() / (2 * size), 1.0, 1e-12);
    EXPECT_EQ(stats.found_inf.item<float>(), 0);
  }
}

TEST(GradientStats, SquaresThatLeaveTheRangeOfFloatDoNot) {
  const auto stats = gradient_stats({at::full({4}, 1e30f)});
  EXPECT_NEAR(stats.norm.item<double>() / 2e30, 1.0, 1e-6);
  EXPECT_EQ(stats.found_inf.item<float>(), 0);
}

TEST(GradientStats, ReadsStridedAndSparseGradients) {
  at::manual_seed(2);
  const auto wide = at::randn({40, 30});
  const auto indices = at::tensor({0, 2, 2, 5}, at::kLong).unsqueeze(0);
  const auto sparse = at::sparse_coo_tensor(indices, at::randn({4, 7}), {9, 7});
  const std::vector<at::Tensor> grads{wide.t(), wide.slice(1, 0, 30, 3), at::randn({1}).expand({5}),
                                      sparse};
  EXPECT_TRUE(testing::close(gradient_stats(grads).norm, flat_double(grads).norm()));
}

TEST(GradientStats, IgnoresWhatLiesBesideAStridedGradient) {
  auto base = at::full({4, 4}, kNaN);
  base.slice(1, 0, 2).fill_(1.0);
  EXPECT_EQ(gradient_stats({base.slice(1, 0, 2)}).found_inf.item<float>(), 0);
}

TEST(GradientStats, DuplicatesOfASparseGradientAddUpBeforeTheCheck) {
  const auto indices = at::tensor({1, 1}, at::kLong).unsqueeze(0);
  const auto values = at::full({2, 1}, 60000.0).to(at::kHalf);
  const auto sparse = at::sparse_coo_tensor(indices, values, {3, 1});
  EXPECT_EQ(gradient_stats({sparse}).found_inf.item<float>(), 1);
}

TEST(GradientStats, DoesNotDependOnTheNumberOfThreads) {
  at::manual_seed(3);
  std::vector<at::Tensor> grads;
  for (int i = 0; i < 50; ++i) grads.push_back(at::randn({1 + i * 4'001}));
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = gradient_stats(grads).norm;
  at::set_num_threads(2);
  const auto two = gradient_stats(grads).norm;
  at::set_num_threads(threads);
  EXPECT_TRUE(testing::same(one, two));
}

TEST(GradientStats, NothingHasNormZero) {
  const auto stats = gradient_stats(at::TensorList{});
  EXPECT_EQ(stats.norm.item<float>(), 0);
  EXPECT_EQ(stats.found_inf.item<float>(), 0);
}

TEST(GradientStats, CombinesShardsOverRanks) {
  // Two ranks played by one: the other rank holds the same gradients.
  const Reducer twice(2, 0, [](at::Tensor& t, ReduceOp op) {
    if (op == ReduceOp::sum) t.mul_(2);
  });
  const auto stats = gradient_stats({at::full({8}, 2.0)}, 2.0, twice);
  EXPECT_NEAR(stats.norm.item<double>(), 8.0, 1e-6);
  EXPECT_NEAR(gradient_stats({at::full({8}, 2.0)}, kInf, twice).norm.item<double>(), 2.0, 1e-6);
}

TEST(GradientStats, RefusesOtherDtypesAndNorms) {
  EXPECT_EQ(testing::message_of<c10::TypeError>([] {
              gradient_stats({at::ones({2}), at::ones({2}, at::kLong)});
            }),
            "gradient 1 has dtype Long; gradients must be float16, bfloat16, float32 or float64");
  EXPECT_EQ(testing::message_of<c10::ValueError>([] { gradient_stats({at::ones({2})}, 0.0); }),
            "norm_type must be above 0 (2, 1, infinity, …), but is 0");
}

TEST(DivideGradients, DividesEveryDtypeWithOneRounding) {
  auto grads = mixed_gradients();
  grads.push_back(at::randn({33}, at::kDouble));
  std::vector<at::Tensor> expected;
  for (const auto& g : grads) expected.push_back((g.to(at::kDouble) / 3.0).to(g.scalar_type()));
  divide_gradients_(grads, at::scalar_tensor(3.0));
  for (size_t i = 0; i < grads.size(); ++i) {
    EXPECT_TRUE(testing::same(grads[i], expected[i])) << i;
  }
}

TEST(DivideGradients, WritesStridedAndSparseGradientsInPlace) {
  at::manual_seed(4);
  auto base = at::randn({6, 6});
  const auto expected = base.clone();
  expected.slice(1, 0, 6, 2).div_(4.0);
  const auto sparse =
      at::sparse_coo_tensor(at::tensor({1, 1}, at::kLong).unsqueeze(0), at::ones({2, 2}), {3, 2});
  divide_gradients_({base.slice(1, 0, 6, 2), sparse}, at::scalar_tensor(4.0));
  EXPECT_TRUE(testing::same(base, expected));
  EXPECT_EQ(sparse.to_dense()[1][0].item<float>(), 0.5);
}

TEST(ClipToNorm, LeavesSmallNormsAndKeepsBadOnes) {
  const auto divisor = [](double norm, double max_norm) {
    return clip_to_norm(at::scalar_tensor(norm), {}, max_norm).divisor.item<double>();
  };
  EXPECT_EQ(divisor(0.5, 1.0), 1.0);
  EXPECT_NEAR(divisor(4.0, 2.0), 2.0, 1e-5);
  EXPECT_EQ(divisor(1e30, kNoClip), 1.0);
  EXPECT_TRUE(std::isnan(divisor(kNaN, 1.0)));
}

TEST(ClipToNorm, FoldsWhatTheGradientsCarry) {
  const auto clipped = clip_to_norm(at::scalar_tensor(4096.0), at::scalar_tensor(1024.0), 2.0);
  EXPECT_EQ(clipped.norm.item<double>(), 4.0);
  EXPECT_NEAR(clipped.divisor.item<double>(), 2048.0, 1e-2);
}

// All instruction sets of this machine, on every bit pattern of the 16-bit types.
class KernelTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    k = kernels::gradient_kernels(GetParam());
    if (k == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
  }
  const kernels::GradientKernels* k = nullptr;
};

TEST_P(KernelTest, ConvertsEverySixteenBitNumberAsLibTorchDoes) {
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    const auto element = dtype == at::kHalf ? kernels::Element::f16 : kernels::Element::bf16;
    auto all = at::arange(65536, at::kInt).to(at::kUInt16).view(dtype);
    const auto expected = (all.to(at::kFloat) / 1.7f).to(dtype);
    auto actual = all.clone();
    k->divide(actual.data_ptr(), actual.numel(), element, 1.7f);
    const auto bad = actual.isnan();
    EXPECT_TRUE(at::equal(bad, expected.isnan()));
    EXPECT_TRUE(testing::same(actual.masked_fill(bad, 0), expected.masked_fill(bad, 0)));
    const auto finite = all.masked_select(all.isfinite());
    const double squares = finite.to(at::kDouble).square().sum().item<double>();
    EXPECT_NEAR(k->sum_squares(finite.data_ptr(), finite.numel(), element) / squares, 1, 1e-14);
    EXPECT_EQ(k->max_abs(finite.data_ptr(), finite.numel(), element),
              finite.to(at::kDouble).abs().max().item<double>());
  }
}

TEST_P(KernelTest, HandlesEveryLengthAndNothingBeyondIt) {
  at::manual_seed(5);
  for (const auto dtype : {at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
    const auto element = dtype == at::kHalf       ? kernels::Element::f16
                         : dtype == at::kBFloat16 ? kernels::Element::bf16
                         : dtype == at::kFloat    ? kernels::Element::f32
                                                  : kernels::Element::f64;
    for (int64_t n = 0; n < 100; ++n) {
      auto padded = at::randn({n + 1}).to(dtype);
      padded[n] = kNaN;
      const auto x = padded.slice(0, 0, n);
      const auto wide = x.to(at::kDouble);
      EXPECT_NEAR(k->sum_squares(x.data_ptr(), n, element), wide.square().sum().item<double>(),
                  1e-12);
      EXPECT_NEAR(k->sum_abs(x.data_ptr(), n, element), wide.abs().sum().item<double>(), 1e-12);
      EXPECT_EQ(k->max_abs(x.data_ptr(), n, element), n ? wide.abs().max().item<double>() : 0);
      const auto expected = (wide / 3).to(dtype);
      k->divide(x.data_ptr(), n, element, 3);
      EXPECT_TRUE(testing::same(x, expected));
      EXPECT_TRUE(padded[n].isnan().item<bool>());
    }
  }
}

TEST_P(KernelTest, AveragesAsLibTorchsLerp) {
  at::manual_seed(6);
  for (const auto dtype : {at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
    const auto element = dtype == at::kHalf       ? kernels::Element::f16
                         : dtype == at::kBFloat16 ? kernels::Element::bf16
                         : dtype == at::kFloat    ? kernels::Element::f32
                                                  : kernels::Element::f64;
    const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
    for (int64_t n = 0; n < 100; ++n) {
      for (const double weight : {0.0, 0.001, 0.5, 0.75, 1.0}) {
        auto padded = at::randn({n + 1}, wide);
        padded[n] = kNaN;
        const auto value = at::randn({n + 1}).to(dtype);
        const auto average = padded.slice(0, 0, n);
        const auto expected = at::lerp(average.to(at::kDouble),
                                       value.slice(0, 0, n).to(at::kDouble), weight);
        k->lerp(average.data_ptr(), value.data_ptr(), n, element, weight);
        EXPECT_TRUE(testing::close(average, expected)) << dtype << " " << n << " " << weight;
        EXPECT_TRUE(padded[n].isnan().item<bool>());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllSets, KernelTest, ::testing::Values("portable", "avx2", "avx512"));

}  // namespace
}  // namespace torchlore
