#include "torchlore/privacy/distributed_noise.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "noise_statistics.hpp"
#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

const StateDict kModel = {{"w", at::zeros({30, 40})}, {"b", at::zeros({5}, at::kDouble)}};

StateDict update_of(double scale) {
  return {{"w", at::randn({30, 40}) * scale}, {"b", at::randn({5}, at::kDouble) * scale}};
}

double norm_of(const StateDict& update) {
  double squares = 0;
  for (const auto& [name, tensor] : update)
    squares += tensor.to(at::kDouble).square().sum().item<double>();
  return std::sqrt(squares);
}

at::Tensor flat(const StateDict& update) {
  std::vector<at::Tensor> parts;
  for (const auto& [name, tensor] : update) parts.push_back(tensor.flatten().to(at::kDouble));
  return at::cat(parts);
}

// With next to no noise the sum of what the clients send is the clipped mean, by its definition.
TEST(DistributedNoise, TheSumDecodesToTheClippedMean) {
  const DistributedNoise shares(
      kModel, {.clip_norm = 2, .noise_multiplier = 1e-7, .clients = 5, .bits = 48});
  auto sum = shares.zero();
  auto expected = at::zeros({1'205}, at::kDouble);
  for (int i = 0; i < 5; ++i) {
    const auto update = update_of(i == 0 ? 1e-3 : i);
    expected += flat(update) * (std::min(1.0, 2 / norm_of(update)) / 5);
    shares.add_(sum, shares.encode(update, NoiseSource::fast_not_secure(static_cast<uint64_t>(i))));
  }
  const auto mean = shares.decode_mean(sum);
  EXPECT_EQ(mean.at("w").scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(flat(mean), expected, 3e-6, 3e-7));
}

TEST(DistributedNoise, TheSharesAddUpToTheNoiseThatWasAskedFor) {
  constexpr int kClients = 20;
  const StateDict large = {{"w", at::zeros({50'000}, at::kDouble)}};
  const DistributedNoise shares(large,
                                {.clip_norm = 3, .noise_multiplier = 1.5, .clients = kClients});
  auto sum = shares.zero();
  for (uint64_t i = 0; i < kClients; ++i)
    shares.add_(sum, shares.encode(large, NoiseSource::fast_not_secure(i)));
  // In steps, rounding adds sqrt(50,000) / 2 to a norm of 3 / step.
  const double raised = 1.5 * (3 + shares.step() * std::sqrt(50'000.0) / 2);
  const auto noise = shares.decode_mean(sum).at("w") * kClients / raised;
  const std::vector<double> numbers(noise.const_data_ptr<double>(),
                                    noise.const_data_ptr<double>() + 50'000);
  EXPECT_LT(testing::kolmogorov_smirnov(numbers, testing::normal_cdf), 1.95);
  EXPECT_LT(raised, 1.5 * 3 * 1.0001);
}

// The largest sum there is: every client puts its whole norm into the same element, in both directions.
TEST(DistributedNoise, TheRangeIsNeverLeft) {
  for (const double sign : {1.0, -1.0}) {
    for (const int64_t bits : {18, 32, 48}) {
      const DistributedNoise shares(
          kModel, {.clip_norm = 1, .noise_multiplier = 1, .clients = 50, .bits = bits});
      auto update = update_of(0);
      update["b"][2] = sign * 1e6;
      auto sum = shares.zero();
      for (int i = 0; i < 50; ++i) shares.add_(sum, shares.encode(update));
      EXPECT_NEAR(shares.decode_mean(sum).at("b")[2].item<double>(), sign, 0.2) << bits;
    }
  }
}

// One message alone must look like nothing but numbers modulo 2^bits; it is in range, and noisy.
TEST(DistributedNoise, AMessageIsInRangeAndNoTwoAreEqual) {
  const DistributedNoise shares(kModel,
                                {.clip_norm = 1, .noise_multiplier = 1, .clients = 10, .bits = 20});
  const auto update = update_of(1);
  const auto one = shares.encode(update), two = shares.encode(update);
  EXPECT_GE(one.min().item<int64_t>(), 0);
  EXPECT_LT(one.max().item<int64_t>(), 1 << 20);
  EXPECT_FALSE(at::equal(one, two));
}

TEST(DistributedNoise, MissingClientsLeaveLessNoise) {
  const DistributedNoise shares(kModel, {.clip_norm = 1, .noise_multiplier = 2, .clients = 100});
  EXPECT_DOUBLE_EQ(shares.noise_multiplier(100), 2);
  EXPECT_DOUBLE_EQ(shares.noise_multiplier(25), 1);
  EXPECT_DOUBLE_EQ(shares.noise_multiplier(400), 2);
  EXPECT_THROW(shares.noise_multiplier(0), c10::ValueError);
}

TEST(DistributedNoise, RefusesBadInput) {
  const auto refused = [](DistributedNoiseOptions options) {
    return message_of<c10::ValueError>([&] { DistributedNoise(kModel, options); });
  };
  EXPECT_EQ(refused({.noise_multiplier = 1, .clients = 1}),
            "clip_norm of DistributedNoise must lie in [1e-100, 1e+100], but is 0");
  EXPECT_EQ(refused({.clip_norm = 1, .clients = 1}),
            "noise_multiplier of DistributedNoise must be a finite number above 0, but is 0");
  EXPECT_EQ(refused({.clip_norm = 1, .noise_multiplier = 1}),
            "clients of DistributedNoise must be 1 or more, but is 0");
  EXPECT_EQ(refused({.clip_norm = 1, .noise_multiplier = 1, .clients = 1, .bits = 60}),
            "bits of DistributedNoise must lie in [8, 48], but is 60");
  EXPECT_EQ(refused({.clip_norm = 1, .noise_multiplier = 1, .clients = 100, .bits = 8}),
            "8 bits are too few for 100 clients, 1205 elements and a noise multiplier of 1; raise "
            "bits of "
            "DistributedNoise");
  const DistributedNoise shares(kModel, {.clip_norm = 1, .noise_multiplier = 1, .clients = 10});
  auto bad = update_of(1);
  bad["b"][1] = NAN;
  EXPECT_EQ(message_of<c10::ValueError>([&] { shares.encode(bad); }),
            "the norm of an update must be finite, but is nan");
  bad.erase("b");
  EXPECT_EQ(message_of<c10::ValueError>([&] { shares.encode(bad); }),
            "an update must have the model's tensors, but \"b\" is missing");
  const auto sum = shares.zero();
  EXPECT_EQ(message_of<c10::ValueError>([&] { shares.add_(sum, at::zeros({7}, at::kLong)); }),
            "expected a contiguous int64 tensor of 1205 elements on the CPU, as encode() gives it");
  EXPECT_EQ(message_of<c10::ValueError>([&] { shares.add_(sum, shares.zero() - 1); }),
            "expected whole numbers in [0, 2^32), as encode() gives them");
  EXPECT_TRUE(at::equal(sum, shares.zero()));
}

}  // namespace
}  // namespace torchlore
