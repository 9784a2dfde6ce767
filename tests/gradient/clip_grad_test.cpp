#include "torchlore/gradient/clip_grad.hpp"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/sgd.h>

#include <limits>
#include <tuple>

#include "support/message.hpp"
#include "support/tolerance.hpp"

namespace torchlore {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// Parameters whose gradients are random numbers times `size`.
std::vector<at::Tensor> parameters_with_gradients(double size, at::ScalarType dtype = at::kFloat) {
  at::manual_seed(7);
  std::vector<at::Tensor> result;
  for (const int64_t n : {3, 50, 1'000}) {
    auto p = at::zeros({n, 4}, dtype).requires_grad_();
    p.mutable_grad() = at::randn({n, 4}, at::kDouble).mul(size).to(dtype);
    result.push_back(p);
  }
  return result;
}

using Case = std::tuple<double, at::ScalarType, double>;
class ClipNormTest : public ::testing::TestWithParam<Case> {};

// LibTorch's own function is the independent source.
TEST_P(ClipNormTest, EqualsLibTorch) {
  const auto [p, dtype, size] = GetParam();
  const auto ours = parameters_with_gradients(size, dtype);
  const auto theirs = parameters_with_gradients(size, dtype);
  const auto norm = clip_grad_norm_(ours, 0.7, {.norm_type = p});
  const double expected = torch::nn::utils::clip_grad_norm_(theirs, 0.7, p);
  EXPECT_NEAR(norm.item<double>() / expected, 1.0, dtype == at::kDouble ? 1e-12 : 1e-5);
  for (size_t i = 0; i < ours.size(); ++i) {
    EXPECT_TRUE(testing::close(ours[i].grad(), theirs[i].grad()));
  }
}

INSTANTIATE_TEST_SUITE_P(Norms, ClipNormTest,
                         ::testing::Combine(::testing::Values(2.0, 1.0, 4.0, kInf),
                                            ::testing::Values(at::kFloat, at::kDouble),
                                            ::testing::Values(1e-4, 1.0, 1e3)));

TEST(ClipGradNorm, LeavesSmallGradientsBitForBit) {
  const auto parameters = parameters_with_gradients(1e-4);
  const auto before = parameters[2].grad().clone();
  clip_grad_norm_(parameters, 1.0);
  EXPECT_TRUE(testing::same(parameters[2].grad(), before));
}

TEST(ClipGradNorm, DividesByTheDivisorInTheSamePass) {
  const auto scaled = parameters_with_gradients(1024.0);
  const auto plain = parameters_with_gradients(1.0);
  const auto norm = clip_grad_norm_(scaled, 1.0, {.divisor = at::scalar_tensor(1024.0)});
  const auto expected = clip_grad_norm_(plain, 1.0);
  EXPECT_TRUE(testing::same(norm, expected));  // a power of two changes no bit
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_TRUE(testing::same(scaled[i].grad(), plain[i].grad()));
  }
}

TEST(ClipGradNorm, TakesModulesOptimizersAndGroups) {
  torch::nn::Linear layer(4, 3);
  torch::optim::SGD optimizer({torch::optim::OptimizerParamGroup({layer->weight}),
                               torch::optim::OptimizerParamGroup({layer->bias})},
                              torch::optim::SGDOptions(0.1));
  const auto fill = [&] {
    layer->weight.mutable_grad() = at::full({3, 4}, 2.0);
    layer->bias.mutable_grad() = at::full({3}, 1.0);
  };
  fill();
  EXPECT_NEAR(clip_grad_norm_(*layer, 1.0).item<double>(), std::sqrt(51.0), 1e-5);
  EXPECT_NEAR(gradient_stats(gradients(optimizer)).norm.item<double>(), 1.0, 1e-5);
  fill();
  EXPECT_NEAR(clip_grad_norm_(optimizer, 1.0).item<double>(), std::sqrt(51.0), 1e-5);
  fill();
  const auto norms = clip_grad_norm_per_group_(optimizer, 1.0);
  EXPECT_TRUE(testing::close(norms, at::tensor({48.0f, 3.0f}).sqrt()));
  EXPECT_NEAR(layer->weight.grad().norm().item<double>(), 1.0, 1e-5);
  EXPECT_NEAR(layer->bias.grad().norm().item<double>(), 1.0, 1e-5);
}

/// Two names for one weight, as a tied output head has.
struct Tied : torch::nn::Module {
  Tied() {
    const auto weight = register_parameter("embedding", at::zeros({4}));
    register_parameter("head", weight);
    weight.mutable_grad() = at::ones({4});
  }
};

TEST(ClipGradNorm, CountsATiedParameterOnce) {
  EXPECT_EQ(clip_grad_norm_(Tied(), 10.0).item<float>(), 2.0f);
}

TEST(ClipGradNorm, WithoutAnyGradientTheNormIsZero) {
  EXPECT_EQ(clip_grad_norm_({at::zeros({2}).requires_grad_()}, 1.0).item<float>(), 0);
}

TEST(ClipGradNorm, InfinityOnlyMeasures) {
  const auto parameters = parameters_with_gradients(5.0);
  const auto before = parameters[0].grad().clone();
  EXPECT_GT(clip_grad_norm_(parameters, kInf).item<float>(), 100);
  EXPECT_TRUE(testing::same(parameters[0].grad(), before));
}

TEST(ClipGradNorm, RefusesANonFiniteNormBeforeItWrites) {
  const auto parameters = parameters_with_gradients(5.0);
  parameters[1].grad()[0][0] = kInf;
  const auto before = parameters[0].grad().clone();
  EXPECT_EQ(
      testing::message_of([&] { clip_grad_norm_(parameters, 1.0, {.error_if_nonfinite = true}); }),
      "the norm of the gradients is inf, so they cannot be clipped; look for what made it (a "
      "loss scale or a learning rate too high), or set error_if_nonfinite = false");
  EXPECT_TRUE(testing::same(parameters[0].grad(), before));
}

TEST(ClipGradNorm, NamesBadArguments) {
  const auto parameters = parameters_with_gradients(1.0);
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { clip_grad_norm_(parameters, 0.0); }),
            "max_norm must be above 0, but is 0; use infinity to measure without clipping");
  EXPECT_EQ(testing::message_of<c10::ValueError>([&] { clip_grad_norm_(parameters, -1.0); }),
            "max_norm must be above 0, but is -1; use infinity to measure without clipping");
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([&] { clip_grad_norm_(parameters, std::nan("")); }),
      "max_norm must be above 0, but is nan; use infinity to measure without clipping");
  EXPECT_EQ(
      testing::message_of<c10::ValueError>([] { clip_grad_norm_(std::vector<at::Tensor>{}, 1.0); }),
      "got an empty list of parameters; pass model->parameters(), the model or its optimizer");
  auto complex = at::zeros({2}, at::kComplexFloat).requires_grad_();
  complex.mutable_grad() = at::ones({2}, at::kComplexFloat);
  EXPECT_EQ(testing::message_of<c10::TypeError>([&] { clip_grad_norm_({complex}, 1.0); }),
            "gradient 0 has dtype ComplexFloat; gradients must be float16, bfloat16, float32 or "
            "float64");
}

TEST(ClipGradValue, ClampsEveryElement) {
  const auto ours = parameters_with_gradients(3.0);
  const auto theirs = parameters_with_gradients(3.0);
  clip_grad_value_(ours, 0.5);
  torch::nn::utils::clip_grad_value_(theirs, 0.5);
  for (size_t i = 0; i < ours.size(); ++i) {
    EXPECT_TRUE(testing::same(ours[i].grad(), theirs[i].grad()));
  }
}

TEST(ClipGradValue, CoalescesASparseGradientFirst) {
  auto p = at::zeros({3, 1}).requires_grad_();
  p.mutable_grad() = at::sparse_coo_tensor(at::tensor({1, 1}, at::kLong).unsqueeze(0),
                                           at::full({2, 1}, 0.4), {3, 1});
  clip_grad_value_({p}, 0.5);
  EXPECT_EQ(p.grad().to_dense()[1][0].item<float>(), 0.5f);
}

TEST(ClipGradValue, NamesABadValue) {
  EXPECT_EQ(testing::message_of<c10::ValueError>(
                [] { clip_grad_value_({at::zeros({1})}, std::nan("")); }),
            "clip_value must be a finite number above 0, but is nan");
}

}  // namespace
}  // namespace torchlore
