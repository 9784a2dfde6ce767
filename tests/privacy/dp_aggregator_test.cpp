#include "torchlore/privacy/dp_aggregator.hpp"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <fstream>

#include "noise_statistics.hpp"
#include "support/message.hpp"
#include "support/temporary_folder.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/tensor_file.hpp"
#include "torchlore/privacy/rdp.hpp"

namespace torchlore {
namespace {

using testing::close;
using testing::message_of;

const StateDict kModel = {{"w", at::zeros({3, 4})}, {"b", at::zeros({5}, at::kDouble)}};

StateDict update_of(double scale) {
  return {{"w", at::randn({3, 4}) * scale}, {"b", at::randn({5}, at::kDouble) * scale}};
}

double norm_of(const StateDict& update) {
  double squares = 0;
  for (const auto& [name, tensor] : update)
    squares += tensor.to(at::kDouble).square().sum().item<double>();
  return std::sqrt(squares);
}

/// What a round without noise should give, from the definition.
StateDict clipped_mean(const std::vector<StateDict>& updates, double clip_norm, double expected) {
  StateDict mean = {{"w", at::zeros({3, 4}, at::kDouble)}, {"b", at::zeros({5}, at::kDouble)}};
  for (const auto& update : updates) {
    const double factor = std::min(1.0, clip_norm / norm_of(update)) / expected;
    for (auto& [name, tensor] : mean) tensor += update.at(name).to(at::kDouble) * factor;
  }
  return mean;
}

void expect_mean(const StateDict& mean, const StateDict& expected) {
  ASSERT_EQ(mean.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    EXPECT_EQ(mean.at(name).scalar_type(), kModel.at(name).scalar_type());
    // Each update is clipped to 1e-6 less than the bound, and they may cancel out.
    EXPECT_TRUE(at::allclose(mean.at(name).to(at::kDouble), tensor, 2e-6, 2e-6)) << name;
  }
}

DpAggregatorOptions without_noise(double clip_norm) {
  return {.clip_norm = clip_norm, .noise_multiplier = 0, .expected_clients = 4};
}

TEST(DpAggregator, GivesTheClippedMeanOverTheExpectedClients) {
  DpAggregator aggregator(kModel, without_noise(2));
  aggregator.start_round();
  const std::vector<StateDict> updates = {update_of(0.01), update_of(1), update_of(1e30),
                                          update_of(0.3)};
  for (size_t i = 0; i < updates.size(); ++i) {
    EXPECT_EQ(aggregator.add("client" + std::to_string(i), updates[i]), UpdateVerdict::accepted);
  }
  const auto round = aggregator.finish_round();
  expect_mean(round.mean, clipped_mean(updates, 2, 4));
  EXPECT_EQ(round.accepted, 4);
  EXPECT_EQ(round.round, 1);
  EXPECT_EQ(round.clip_norm, 2);
  EXPECT_TRUE(round.rejected.empty());
}

// The sum of whole numbers knows no order: what a client adds cannot hide in another's rounding.
TEST(DpAggregator, TheOrderOfTheClientsDoesNotMatterToTheLastBit) {
  std::vector<StateDict> updates;
  for (int i = 0; i < 50; ++i) updates.push_back(update_of(1));
  std::vector<StateDict> means;
  for (int turn = 0; turn < 2; ++turn) {
    DpAggregator aggregator(kModel, without_noise(2));
    aggregator.start_round();
    for (size_t i = 0; i < updates.size(); ++i) aggregator.add(std::to_string(i), updates[i]);
    means.push_back(aggregator.finish_round().mean);
    std::reverse(updates.begin(), updates.end());
  }
  for (const auto& [name, tensor] : means[0]) EXPECT_TRUE(testing::same(tensor, means[1].at(name)));
}

TEST(DpAggregator, AddsNoiseOnceOfTheRightSize) {
  const StateDict large = {{"w", at::zeros({60'000}, at::kDouble)}};
  for (const int clients : {0, 10}) {
    DpAggregator aggregator(large, {.clip_norm = 3,
                                    .noise_multiplier = 1.5,
                                    .expected_clients = 20,
                                    .noise = NoiseSource::fast_not_secure(40)});
    aggregator.start_round();
    for (int i = 0; i < clients; ++i) aggregator.add(std::to_string(i), large);
    const auto noise = aggregator.finish_round().mean.at("w") * 20 / (3 * 1.5);
    const std::vector<double> numbers(noise.const_data_ptr<double>(),
                                      noise.const_data_ptr<double>() + noise.numel());
    EXPECT_LT(testing::kolmogorov_smirnov(numbers, testing::normal_cdf), 1.95);
  }
}

TEST(DpAggregator, SecureNoiseIsTheDefaultAndDiffers) {
  const DpAggregatorOptions options{.clip_norm = 1, .noise_multiplier = 1, .expected_clients = 1};
  EXPECT_TRUE(options.noise.is_secure());
  DpAggregator aggregator(kModel, options);
  aggregator.start_round();
  const auto one = aggregator.finish_round().mean;
  aggregator.start_round();
  EXPECT_FALSE(at::equal(aggregator.finish_round().mean.at("b"), one.at("b")));
}

TEST(DpAggregator, RejectsBadUpdatesOneByOneAndCountsTheRest) {
  const testing::TemporaryFolder folder;
  DpAggregator aggregator(kModel, without_noise(1));
  EXPECT_EQ(aggregator.add("early", update_of(1)), UpdateVerdict::late);
  aggregator.start_round({"a", "b", "c", "d", "e", "f", "g"});
  const auto good = update_of(1), other = update_of(1);
  EXPECT_EQ(aggregator.add("a", good), UpdateVerdict::accepted);
  EXPECT_EQ(aggregator.add("a", good), UpdateVerdict::duplicate);
  EXPECT_EQ(aggregator.add("stranger", good), UpdateVerdict::not_selected);
  EXPECT_EQ(aggregator.add("b", good, 7), UpdateVerdict::late);
  auto bad = update_of(1);
  bad["w"] = at::zeros({4, 3});
  EXPECT_EQ(aggregator.add("c", bad), UpdateVerdict::wrong_tensors);
  bad.erase("w");
  EXPECT_EQ(aggregator.add("c", bad), UpdateVerdict::wrong_tensors);
  bad = update_of(1);
  bad["extra"] = at::zeros({1});
  EXPECT_EQ(aggregator.add("c", bad), UpdateVerdict::wrong_tensors);
  bad = update_of(1);
  bad["w"] = at::zeros({3, 4}, at::kLong);
  EXPECT_EQ(aggregator.add("c", bad), UpdateVerdict::wrong_tensors);
  for (const double value : {NAN, INFINITY}) {
    bad = update_of(1);
    bad["w"][1][2] = value;
    EXPECT_EQ(aggregator.add("d", bad), UpdateVerdict::not_finite);
  }
  EXPECT_EQ(aggregator.add_file("e", folder / "missing"), UpdateVerdict::unreadable);
  std::ofstream(folder / "broken") << "not a file of tensors";
  EXPECT_EQ(aggregator.add_file("e", folder / "broken"), UpdateVerdict::unreadable);
  write_tensors(folder / "good", other);
  EXPECT_EQ(aggregator.add_file("e", folder / "good"), UpdateVerdict::accepted);
  EXPECT_EQ(aggregator.add("d", good), UpdateVerdict::accepted);  // its second try

  const auto round = aggregator.finish_round();
  expect_mean(round.mean, clipped_mean({good, other, good}, 1, 4));
  EXPECT_EQ(round.accepted, 3);
  EXPECT_EQ(round.missing, (std::vector<std::string>{"b", "c", "f", "g"}));
  ASSERT_EQ(round.rejected.size(), 12U);
  EXPECT_EQ(round.rejected[0].client, "early");
  EXPECT_EQ(round.rejected[4].reason, "\"w\" has the shape [4, 3] instead of [3, 4]");
  EXPECT_EQ(round.rejected[5].reason, "\"w\" is missing");
  EXPECT_EQ(round.rejected[6].reason, "\"extra\" is not a tensor of the model");
  EXPECT_EQ(round.rejected[7].reason, "\"w\" is Long, not floating");
  EXPECT_EQ(round.rejected[8].reason, "its norm is not finite");
  EXPECT_STREQ(to_string(round.rejected[8].verdict), "not_finite");
  EXPECT_EQ(aggregator.add("a", good), UpdateVerdict::late);
}

// Two clients of norms 8.5 and 7.25, bound 10, quantile 0, rate 1. First both are below: share 1, the
// bound becomes 10 / e; then none is: it stays.
TEST(DpAggregator, TheBoundFollowsTheQuantile) {
  const StateDict model = {{"x", at::zeros({}, at::kDouble)}};
  DpAggregator aggregator(model, {.clip_norm = 10,
                                  .noise_multiplier = 0,
                                  .expected_clients = 2,
                                  .adaptive = AdaptiveBound{.quantile = 0, .rate = 1}});
  for (const double expected : {3.678794411714423, 3.678794411714423}) {
    aggregator.start_round();
    aggregator.add("a", {{"x", at::full({}, 8.5, at::kDouble)}});
    aggregator.add("b", {{"x", at::full({}, -7.25, at::kDouble)}});
    aggregator.finish_round();
    EXPECT_NEAR(aggregator.clip_norm(), expected, 1e-12);
  }
}

// The same clients with steps that are differences; the norms are those of TensorFlow Privacy's quantile
// estimator for these records.
TEST(DpAggregator, TheBoundFollowsTheQuantileByDifferences) {
  const StateDict model = {{"x", at::zeros({}, at::kDouble)}};
  DpAggregator aggregator(
      model, {.clip_norm = 10,
              .noise_multiplier = 0,
              .expected_clients = 2,
              .adaptive = AdaptiveBound{.quantile = 0, .rate = 1, .geometric = false}});
  for (const double expected : {9.0, 8.0, 7.5, 7.0, 7.0}) {
    aggregator.start_round();
    aggregator.add("a", {{"x", at::full({}, 8.5, at::kDouble)}});
    aggregator.add("b", {{"x", at::full({}, -7.25, at::kDouble)}});
    aggregator.finish_round();
    EXPECT_NEAR(aggregator.clip_norm(), expected, 1e-12);
  }
}

// z = 1 and a count of deviation 5: the updates get 1 / sqrt(1 - 1/100) = 1.005037815 instead of 1, and
// the bound moves by rate × count noise / expected clients around its mean.
TEST(DpAggregator, TheCountsNoiseIsPaidFor) {
  const StateDict large = {{"w", at::zeros({50'000}, at::kDouble)}};
  DpAggregator aggregator(large, {.clip_norm = 1,
                                  .noise_multiplier = 1,
                                  .expected_clients = 100,
                                  .adaptive = AdaptiveBound{.quantile = 0.5, .rate = 0.2},
                                  .noise = NoiseSource::fast_not_secure(41)});
  std::vector<double> moves;
  double deviation = 0;
  for (int i = 0; i < 40; ++i) {
    const double before = aggregator.clip_norm();
    aggregator.start_round();
    const auto mean = aggregator.finish_round().mean.at("w");
    deviation += mean.std().item<double>() * 100 / before / 40;
    moves.push_back(std::log(aggregator.clip_norm() / before) / (0.2 * 5 / 100));
  }
  EXPECT_NEAR(deviation, 1.005037815, 5 / std::sqrt(2 * 40 * 5e4));
  EXPECT_LT(testing::kolmogorov_smirnov(moves, testing::normal_cdf), 1.95);
  const auto ledger = aggregator.ledger();
  ASSERT_EQ(ledger.events().size(), 1U);
  EXPECT_EQ(ledger.events()[0].noise_multiplier, 1);
  EXPECT_EQ(ledger.events()[0].steps, 40);
}

TEST(DpAggregator, AccountsForEveryRound) {
  DpAggregator aggregator(
      kModel, {.clip_norm = 1, .noise_multiplier = 2, .expected_clients = 10, .client_rate = 0.1});
  EXPECT_TRUE(aggregator.ledger().empty());
  for (int i = 0; i < 3; ++i) {
    aggregator.start_round();
    aggregator.finish_round();
  }
  const PrivacyLedger expected({{.noise_multiplier = 2, .sample_rate = 0.1, .steps = 3}});
  EXPECT_EQ(rdp_epsilon(aggregator.ledger(), 1e-5).value, rdp_epsilon(expected, 1e-5).value);

  DpAggregator bare(kModel, without_noise(1));
  bare.start_round();
  bare.finish_round();
  EXPECT_EQ(message_of<c10::ValueError>([&] { bare.ledger(); }),
            "rounds without noise have no finite epsilon to account for");
}

TEST(DpAggregator, GoesOnFromItsState) {
  const auto make = [] {
    return DpAggregator(kModel, {.clip_norm = 1,
                                 .noise_multiplier = 1,
                                 .expected_clients = 20,
                                 .adaptive = AdaptiveBound{},
                                 .noise = NoiseSource::fast_not_secure(42)});
  };
  auto one = make(), two = make();
  one.start_round();
  one.finish_round();
  two.load_state_dict(one.state_dict());
  for (auto* aggregator : {&one, &two}) aggregator->start_round();
  const auto a = one.finish_round(), b = two.finish_round();
  EXPECT_TRUE(testing::same(a.mean.at("b"), b.mean.at("b")));
  EXPECT_EQ(one.clip_norm(), two.clip_norm());
  EXPECT_EQ(two.rounds(), 2);
  auto state = one.state_dict();
  state["rounds"] = state_value(int64_t{-1});
  EXPECT_EQ(message_of<c10::ValueError>([&] { two.load_state_dict(state); }),
            "the state of a DpAggregator has finished 0 or more rounds, but \"rounds\" is -1");
}

TEST(DpAggregator, RefusesBadOptionsAndCallsOutOfOrder) {
  const auto refused = [](DpAggregatorOptions options) {
    return message_of<c10::ValueError>([&] { DpAggregator(kModel, options); });
  };
  EXPECT_EQ(refused({.noise_multiplier = 1, .expected_clients = 1}),
            "clip_norm of DpAggregator must be a finite number above 0, but is 0");
  EXPECT_EQ(refused({.clip_norm = INFINITY, .noise_multiplier = 1, .expected_clients = 1}),
            "clip_norm of DpAggregator must be a finite number above 0, but is inf");
  EXPECT_EQ(refused({.clip_norm = 1, .expected_clients = 1}),
            "noise_multiplier of DpAggregator must be a finite number, 0 or above, but is -1");
  EXPECT_EQ(refused({.clip_norm = 1, .noise_multiplier = 1}),
            "expected_clients of DpAggregator must be a finite number above 0, but is 0");
  EXPECT_EQ(
      refused({.clip_norm = 1, .noise_multiplier = 1, .expected_clients = 1, .client_rate = 2}),
      "client_rate of DpAggregator must lie in (0, 1], but is 2");
  EXPECT_EQ(refused({.clip_norm = 1,
                     .noise_multiplier = 3,
                     .expected_clients = 20,
                     .adaptive = AdaptiveBound{}}),
            "count_noise of AdaptiveBound is 1, which alone spends all that a noise multiplier of "
            "3 allows; it "
            "must be above half of it");
  EXPECT_THROW(DpAggregator({{"w", at::zeros({2}, at::kLong)}}, without_noise(1)), c10::TypeError);
  EXPECT_THROW(DpAggregator({}, without_noise(1)), c10::ValueError);

  DpAggregator aggregator(kModel, without_noise(1));
  EXPECT_EQ(message_of([&] { aggregator.finish_round(); }),
            "finish_round without a round; start_round() begins one");
  aggregator.start_round();
  EXPECT_EQ(message_of([&] { aggregator.start_round(); }),
            "start_round is for between rounds, but round 1 is open; finish_round() first");
  EXPECT_THROW(aggregator.state_dict(), c10::Error);
}

}  // namespace
}  // namespace torchlore
