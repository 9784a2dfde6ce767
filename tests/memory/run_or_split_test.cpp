#include "torchlore/memory/run_or_split.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/linear.h>

#include <stdexcept>
#include <tuple>

#include "support/fails_in_backward.hpp"
#include "support/message.hpp"
#include "support/out_of_memory.hpp"
#include "support/tolerance.hpp"
#include "torchlore/core/rng.hpp"

namespace torchlore {
namespace {

namespace nn = torch::nn;
using testing::message_of;
using testing::same;

using Data = std::tuple<at::Tensor, at::Tensor>;
constexpr int64_t kBatch = 12;

struct Net {
  explicit Net(at::ScalarType dtype = at::kDouble) {
    at::set_num_threads(1);  // the nets are tiny
    at::manual_seed(3);
    net = nn::Sequential(nn::Linear(5, 7), nn::Tanh(), nn::Linear(7, 4));
    net->to(dtype);
    batch = {at::randn({kBatch, 5}, dtype), at::randint(4, {kBatch}, at::kLong)};
    // Counts that no part has its share of: the first examples have most of the tokens.
    tokens = at::arange(kBatch, 0, -1).pow(2);
  }
  at::Tensor losses(const Data& data) {
    return nn::functional::cross_entropy(
        net->forward(std::get<0>(data)), std::get<1>(data),
        nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
  }
  std::vector<at::Tensor> gradients() {
    std::vector<at::Tensor> all;
    for (const auto& p : net->parameters()) {
      all.push_back(p.grad().defined() ? p.grad().clone() : at::Tensor());
    }
    return all;
  }
  void clear() {
    for (const auto& p : net->parameters()) p.mutable_grad() = at::Tensor();
  }
  nn::Sequential net{nullptr};
  Data batch;
  at::Tensor tokens;
};

/// Runs out of memory for parts above a size: in the forward pass, or in backward.
struct Limit {
  int64_t largest = kBatch;
  bool in_backward = false;
  at::Tensor operator()(const at::Tensor& x) const {
    if (x.size(0) <= largest) return x;
    if (in_backward) return testing::FailsInBackward::apply(x);
    C10_THROW_ERROR(OutOfMemoryError, "injected");
  }
};

enum class Kind { mean, sum, examples };

using AnyLoss = std::variant<at::Tensor, Loss>;

AnyLoss loss_of(Net& net, const Data& part, const at::Tensor& tokens, Kind kind,
                const Limit& limit) {
  const auto losses = limit(net.losses(part));
  if (kind == Kind::mean) return losses.mean();
  if (kind == Kind::examples) return losses;
  return Loss{(losses * tokens).sum(), tokens.sum()};
}

/// The whole batch, in plain LibTorch.
at::Tensor plain(Net& net, Kind kind) {
  const auto losses = net.losses(net.batch);
  const auto loss =
      kind == Kind::sum ? (losses * net.tokens).sum() / net.tokens.sum() : losses.mean();
  loss.backward();
  return loss.detach();
}

SplitResult split(BatchSplitter& splitter, Net& net, Kind kind, const Limit& limit) {
  using WithTokens = std::tuple<Data, at::Tensor>;
  const WithTokens batch{net.batch, net.tokens};
  const auto part_loss = [&](const WithTokens& part) {
    return loss_of(net, std::get<0>(part), std::get<1>(part), kind, limit);
  };
  if (kind == Kind::sum) {
    return splitter(batch, [&](const WithTokens& p) { return std::get<Loss>(part_loss(p)); });
  }
  return splitter(batch, [&](const WithTokens& p) { return std::get<at::Tensor>(part_loss(p)); });
}

double worst(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto scale = b[i].abs().max().item<double>();
    largest = std::max(largest, (a[i] - b[i]).abs().max().item<double>() / scale);
  }
  return largest;
}

class Split : public ::testing::TestWithParam<std::tuple<Kind, at::ScalarType, bool>> {};

TEST_P(Split, GivesTheGradientOfTheWholeBatch) {
  const auto [kind, dtype, in_backward] = GetParam();
  const double bar = dtype == at::kDouble ? 1e-12 : 1e-6;
  for (const bool accumulating : {false, true}) {
    for (int64_t largest = 1; largest <= kBatch; ++largest) {
      Net whole(dtype), parts(dtype);
      if (accumulating) {
        plain(whole, Kind::mean);
        plain(parts, Kind::mean);
      }
      const auto expected = plain(whole, kind);
      BatchSplitter splitter;
      const auto result = split(splitter, parts, kind, {largest, in_backward});
      EXPECT_LE(worst(parts.gradients(), whole.gradients()), bar) << largest;
      EXPECT_NEAR(result.loss.item<double>(), expected.item<double>(), bar * 4);
      EXPECT_FALSE(result.loss.requires_grad());
      EXPECT_LE(result.part_size, largest);
      EXPECT_EQ(result.parts, (kBatch + result.part_size - 1) / result.part_size);
      if (largest < kBatch) continue;
      EXPECT_EQ(result.parts, 1);
      const auto ours = parts.gradients(), theirs = whole.gradients();
      for (size_t i = 0; i < ours.size(); ++i) {
        if (kind == Kind::mean) {
          EXPECT_TRUE(same(ours[i], theirs[i])) << "bit for bit";
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, Split,
    ::testing::Combine(::testing::Values(Kind::mean, Kind::sum, Kind::examples),
                       ::testing::Values(at::kFloat, at::kDouble), ::testing::Bool()));

TEST(RunOrSplit, ReadsAsInTheDocumentation) {
  Net whole, parts;
  plain(whole, Kind::sum);
  int calls = 0;
  const auto result = run_or_split(std::tuple(parts.batch, parts.tokens), [&](const auto& part) {
    ++calls;
    const auto& [data, tokens] = part;
    return Loss{(Limit{5}(parts.losses(data)) * tokens).sum(), tokens.sum()};
  });
  EXPECT_LE(worst(parts.gradients(), whole.gradients()), 1e-12);
  EXPECT_EQ(result.part_size, 3);
  EXPECT_EQ(calls, 1 + 1 + 4);
}

struct Dialogue {
  at::Tensor words, answers;
};
int64_t batch_size(const Dialogue& d) { return d.words.size(0); }
Dialogue slice(const Dialogue& d, int64_t from, int64_t to) {
  return {d.words.slice(0, from, to), d.answers.slice(0, from, to)};
}

TEST(RunOrSplit, TakesAnyBatchAndTheWholeOneUnsliced) {
  Net net;
  const Dialogue batch{std::get<0>(net.batch), std::get<1>(net.batch)};
  const Dialogue* seen = nullptr;
  run_or_split(batch, [&](const Dialogue& d) {
    seen = &d;
    return net.losses({d.words, d.answers}).mean();
  });
  EXPECT_EQ(seen, &batch);
}

TEST(RunOrSplit, AnEmptyBatchDoesNothing) {
  const auto result = run_or_split(
      at::zeros({0, 3}), [](const at::Tensor&) -> at::Tensor { throw std::logic_error("called"); });
  EXPECT_EQ(result.parts, 0);
  EXPECT_FALSE(result.loss.defined());
}

TEST(RunOrSplit, PassesOtherErrorsOnWithTheGradientsAsTheyWere) {
  Net net;
  plain(net, Kind::mean);
  net.net->parameters()[0].mutable_grad() = at::Tensor();
  const auto before = net.gradients();
  const auto random = RngState::capture().state_dict().at("cpu");
  int part = 0;
  BatchSplitter splitter;
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              splitter(net.batch, [&](const Data& data) {
                at::rand({1});
                TORCH_CHECK_VALUE(part++ < 3, "wrong");
                return Limit{3}(net.losses(data)).mean();
              });
            }),
            "wrong");
  EXPECT_FALSE(net.net->parameters()[0].grad().defined());
  for (size_t i = 1; i < before.size(); ++i) {
    EXPECT_TRUE(same(net.net->parameters()[i].grad(), before[i]));
  }
  EXPECT_TRUE(same(RngState::capture().state_dict().at("cpu"), random));
}

TEST(RunOrSplit, GivesTheOriginalErrorWhereOneExampleDoesNotFit) {
  Net net;
  plain(net, Kind::mean);
  const auto before = net.gradients();
  EXPECT_EQ(message_of<c10::OutOfMemoryError>([&] {
              BatchSplitter splitter;
              split(splitter, net, Kind::mean, {0});
            }),
            "injected (a batch of 12 was run in parts; those that were tried did not fit: 12, 6, "
            "3, 2, 1)");
  EXPECT_EQ(message_of<c10::OutOfMemoryError>([&] {
              BatchSplitter splitter({.sizes = {.min_size = 4}});
              split(splitter, net, Kind::mean, {3});
            }),
            "injected (a batch of 12 was run in parts; those that were tried did not fit: 12, 6, "
            "4)");
  const auto after = net.gradients();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(same(after[i], before[i]));
}

TEST(RunOrSplit, RefusesLossesOfAnotherShape) {
  Net net;
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              run_or_split(net.batch,
                           [&](const Data& data) { return net.net->forward(std::get<0>(data)); });
            }),
            "a loss function must return a 0-d mean, a Loss{sum, count} or one loss per example "
            "[B], but returned shape [12, 4] for 12 examples");
  EXPECT_EQ(
      message_of<c10::ValueError>([&] {
        run_or_split(net.batch, [&](const Data& data) { return Loss{net.losses(data).sum(), -1}; });
      }),
      "a count must be 0 or more, but is -1");
}

TEST(BatchSplitter, RemembersWhatFitsAndTellsOfChanges) {
  Net net;
  std::vector<std::pair<int64_t, int64_t>> changes;
  BatchSplitter splitter({.sizes = {.search_every = 2}, .on_change = [&](const SplitEvent& event) {
                            changes.emplace_back(event.from, event.to);
                            EXPECT_EQ(event.error, event.to < event.from ? "injected" : "");
                          }});
  std::vector<int64_t> sizes;
  for (int i = 0; i < 4; ++i) {
    sizes.push_back(split(splitter, net, Kind::mean, {10}).part_size);
  }
  // 12 fails, 6 fits twice, then the middle of 6 and 12 is tried.
  EXPECT_EQ(sizes, (std::vector<int64_t>{6, 6, 9, 6}));
  EXPECT_EQ(changes, (std::vector<std::pair<int64_t, int64_t>>{{12, 6}, {6, 9}}));
  BatchSplitter loaded;
  loaded.load_state_dict(splitter.state_dict());
  EXPECT_EQ(loaded.sizes().fits(), 9);
  EXPECT_EQ(loaded.sizes().fails(), 12);
}

/// The gradients do not depend on where in a part memory runs out.
TEST(BatchSplitter, SurvivesAFaultAtEveryAllocation) {
  const MemoryMeter meter;  // its first one wants to stand below the faulty allocator
  auto& allocator = testing::FaultyAllocator::install();
  Net whole, parts;
  plain(whole, Kind::sum);
  plain(whole, Kind::sum);
  const auto expected = whole.gradients();
  const auto run = [&] {
    parts.clear();
    plain(parts, Kind::sum);  // gradients that the faults may not touch
    return [&] {
      BatchSplitter splitter;
      split(splitter, parts, Kind::sum, {});
    };
  };
  const auto count_all = run();
  allocator.never_fail();
  count_all();
  const auto allocations = allocator.count();
  ASSERT_GT(allocations, 20);
  for (int64_t i = 0; i < allocations; ++i) {
    const auto step = run();
    allocator.fail_at(i);
    step();
    allocator.never_fail();
    EXPECT_LE(worst(parts.gradients(), expected), 1e-12) << "fault at allocation " << i;
  }
}

TEST(BatchSplitter, DrawsDropoutAnewFromTheStateBeforeTheBatch) {
  const auto gradients = [](bool by_hand) {
    Net net;
    nn::Dropout dropout(0.5);
    const auto loss = [&](const Data& part) {
      return nn::functional::cross_entropy(dropout->forward(net.net->forward(std::get<0>(part))),
                                           std::get<1>(part));
    };
    at::manual_seed(9);
    if (by_hand) {
      for (const int64_t from : {0, 6})
        (loss(torchlore::slice(net.batch, from, from + 6)) / 2).backward();
    } else {
      run_or_split(net.batch, [&](const Data& part) {
        if (torchlore::batch_size(part) > 6) {
          at::rand({3});
          C10_THROW_ERROR(OutOfMemoryError, "injected");
        }
        return loss(part);
      });
    }
    return net.gradients();
  };
  const auto ours = gradients(false), by_hand = gradients(true);
  EXPECT_LE(worst(ours, by_hand), 1e-12);
}

template <typename Norm>
struct NormNet {
  explicit NormNet(Norm n) : norm(n) {
    at::set_num_threads(1);
    at::manual_seed(4);
    first = nn::Linear(6, 6);
    first->to(at::kDouble);
    norm->to(at::kDouble);
    x = at::randn({8, 3, 6}, at::kDouble);
  }
  at::Tensor loss(const at::Tensor& part) {
    return norm->forward(first->forward(part)).pow(3).mean();
  }
  Norm norm;
  nn::Linear first{nullptr};
  at::Tensor x;
};

TEST(BatchSplitter, RefusesBatchNormInTrainingBeforeItsStatisticsMove) {
  NormNet<nn::BatchNorm1d> net{nn::BatchNorm1d(3)};
  const auto mean = net.norm->running_mean.clone();
  BatchSplitter splitter;
  const auto loss = [&](const at::Tensor& part) {
    if (part.size(0) > 4) C10_THROW_ERROR(OutOfMemoryError, "injected");
    return net.loss(part);
  };
  const std::string refused =
      "the batch was not split: batch norm in training mode takes its statistics over the batch, "
      "and would take them over parts. Accept that by {.batch_statistics = "
      "BatchStatistics::of_parts}, or put batch norm into eval mode";
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(message_of<c10::OutOfMemoryError>([&] { splitter(net.x, loss); }),
              "injected (" + refused + ")");
    EXPECT_TRUE(same(net.norm->running_mean, mean));
    EXPECT_FALSE(net.first->weight.grad().defined());
  }
  // A size that was loaded: there is no error to rethrow.
  BatchSplitter small;
  small.load_state_dict({{"fits", state_value(int64_t{4})},
                         {"fails", state_value(int64_t{5})},
                         {"good", state_value(int64_t{0})},
                         {"patience", state_value(int64_t{9})}});
  EXPECT_EQ(message_of<c10::NotImplementedError>([&] { small(net.x, loss); }), refused);
  net.norm->eval();
  EXPECT_EQ(splitter(net.x, loss).part_size, 4);
}

TEST(BatchSplitter, AcceptsBatchNormOverPartsAndPutsItsBuffersBack) {
  NormNet<nn::BatchNorm1d> split{nn::BatchNorm1d(3)}, by_hand{nn::BatchNorm1d(3)};
  BatchSplitter splitter({.batch_statistics = BatchStatistics::of_parts, .model = &*split.norm});
  splitter(split.x, [&](const at::Tensor& part) {
    const auto loss = split.loss(part);  // moves the statistics of the whole batch first
    if (part.size(0) > 4) C10_THROW_ERROR(OutOfMemoryError, "injected");
    return loss;
  });
  for (const int64_t from : {0, 4})
    (by_hand.loss(by_hand.x.slice(0, from, from + 4)) / 2).backward();
  EXPECT_TRUE(same(split.norm->running_mean, by_hand.norm->running_mean));
  EXPECT_TRUE(same(split.norm->num_batches_tracked, by_hand.norm->num_batches_tracked));
  EXPECT_LE(worst({split.first->weight.grad()}, {by_hand.first->weight.grad()}), 1e-12);
}

TEST(BatchSplitter, SplitsInstanceNorm) {
  NormNet<nn::InstanceNorm1d> whole{nn::InstanceNorm1d(nn::InstanceNorm1dOptions(3).affine(true))},
      parts{nn::InstanceNorm1d(nn::InstanceNorm1dOptions(3).affine(true))};
  whole.loss(whole.x).backward();
  const auto result = run_or_split(parts.x, [&](const at::Tensor& part) {
    if (part.size(0) > 1) C10_THROW_ERROR(OutOfMemoryError, "injected");
    return parts.loss(part);
  });
  EXPECT_EQ(result.parts, 8);
  EXPECT_LE(worst({parts.first->weight.grad()}, {whole.first->weight.grad()}), 1e-12);
}

/// Ranks of which the others' words are scripted, in order.
Reducer scripted(std::vector<double> others) {
  auto next = std::make_shared<size_t>(0);
  return {2, 0, [others, next](at::Tensor& value, ReduceOp op) {
            EXPECT_EQ(op, ReduceOp::max);
            value.fill_(std::max(value.item<double>(), others.at((*next)++)));
          }};
}

TEST(BatchSplitter, SplitsWhereMemoryRunsOutOnAnotherRank) {
  Net whole, parts;
  plain(whole, Kind::mean);
  // The other's batch is as large; it runs out of memory twice, then all fits.
  BatchSplitter splitter({.reducer = scripted({12, 1, 1, 0})});
  const auto result = split(splitter, parts, Kind::mean, {});
  EXPECT_EQ(result.part_size, 3);
  EXPECT_LE(worst(parts.gradients(), whole.gradients()), 1e-12);
}

TEST(BatchSplitter, UsesTheSizesOfTheLargestBatchOfAllRanks) {
  Net net;
  BatchSplitter splitter({.reducer = scripted({48, 1, 0})});
  const auto result = split(splitter, net, Kind::mean, {});
  EXPECT_EQ(result.part_size, 24);
  EXPECT_EQ(result.parts, 1);
}

TEST(BatchSplitter, GivesUpWhereAnotherRankDoes) {
  Net net;
  BatchSplitter splitter({.reducer = scripted({12, 2})});
  EXPECT_EQ(message_of<c10::OutOfMemoryError>([&] { split(splitter, net, Kind::mean, {}); }),
            "parts of 12 went through on this rank, but another rank gave up; the error is there");
  EXPECT_FALSE(net.gradients()[0].defined());
}

TEST(BatchSplitter, ChecksItsOptions) {
  EXPECT_EQ(message_of<c10::ValueError>([] { BatchSplitter splitter({.classify = nullptr}); }),
            "classify must be callable; its default is classify_error");
  EXPECT_EQ(message_of<c10::ValueError>([] { BatchSplitter splitter({.sizes = {.min_size = 0}}); }),
            "min_size must be 1 or more, but is 0");
}

}  // namespace
}  // namespace torchlore
