#include "torchlore/data/resumable_sampler.hpp"

#include <gtest/gtest.h>
#include <torch/data/dataloader.h>
#include <torch/data/datasets/base.h>

#include <algorithm>
#include <numeric>

#include "support/message.hpp"
#include "torchlore/core/philox.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using Indices = std::vector<size_t>;

/// A dataset whose examples are their own indices.
struct IndexDataset : torch::data::datasets::BatchDataset<IndexDataset, Indices> {
  explicit IndexDataset(size_t count) : count_(count) {}
  Indices get_batch(c10::ArrayRef<size_t> indices) override { return indices.vec(); }
  std::optional<size_t> size() const override { return count_; }
  size_t count_;
};

struct LoaderSettings {
  size_t batch_size = 4;
  size_t workers = 0;
  bool drop_last = false;
};

/// Trains until `epochs` are over or `most` batches were consumed; returns what was trained on.
Indices train(ResumableSampler& sampler, int64_t epochs, const LoaderSettings& settings,
              size_t most = 1000) {
  auto loader =
      torch::data::make_data_loader(IndexDataset(static_cast<size_t>(sampler.size())), sampler,
                                    torch::data::DataLoaderOptions(settings.batch_size)
                                        .workers(settings.workers)
                                        .drop_last(settings.drop_last));
  Indices seen;
  size_t batches = 0;
  while (sampler.epoch() < epochs) {
    for (auto& batch : *loader) {
      seen.insert(seen.end(), batch.begin(), batch.end());
      sampler.consume(static_cast<int64_t>(batch.size()));
      if (++batches == most) return seen;
    }
  }
  return seen;
}

/// The examples of some epochs, straight from the definition.
Indices expected(uint64_t seed, int64_t epochs, int64_t size) {
  Indices all;
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    for (const auto index : philox_permutation(seed, epoch, size)) {
      all.push_back(static_cast<size_t>(index));
    }
  }
  return all;
}

TEST(ResumableSampler, OrderIsAFunctionOfSeedAndEpoch) {
  ResumableSampler sampler(11, {.seed = 5});
  EXPECT_EQ(train(sampler, 3, {}), expected(5, 3, 11));
}

TEST(ResumableSampler, SequentialCountsUp) {
  ResumableSampler sampler(5, {.shuffle = false});
  EXPECT_EQ(train(sampler, 2, {.batch_size = 2}), (Indices{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
}

/// Stops after every possible number of batches and resumes in a new sampler with other batches.
class Resume : public ::testing::TestWithParam<size_t> {};

TEST_P(Resume, NeitherRepeatsNorSkips) {
  constexpr int64_t kSize = 23;
  for (size_t stop = 1; stop <= 17; ++stop) {
    ResumableSampler first(kSize, {.seed = 9});
    auto seen = train(first, 3, {.batch_size = 4, .workers = GetParam()}, stop);
    ResumableSampler second(kSize);
    second.load_state_dict(first.state_dict());
    const auto rest = train(second, 3, {.batch_size = 5, .workers = GetParam()});
    seen.insert(seen.end(), rest.begin(), rest.end());
    EXPECT_EQ(seen, expected(9, 3, kSize)) << "stopped after " << stop << " batches";
  }
}

TEST_P(Resume, GoesOnWithinOneProcess) {
  ResumableSampler sampler(23, {.seed = 9});
  Indices seen;
  for (int part = 0; part < 6; ++part) {
    const auto more = train(sampler, 2, {.batch_size = 4, .workers = GetParam()}, 2);
    seen.insert(seen.end(), more.begin(), more.end());
  }
  EXPECT_EQ(seen, expected(9, 2, 23));
}

TEST_P(Resume, DropLastLeavesOutTheShortBatchOfEachEpoch) {
  ResumableSampler sampler(10, {.seed = 2, .drop_last = true});
  auto seen = train(sampler, 3, {.batch_size = 4, .workers = GetParam()}, 3);
  EXPECT_EQ(sampler.epoch(), 1);
  EXPECT_EQ(sampler.consumed(), 4);
  const auto rest = train(sampler, 3, {.batch_size = 4, .workers = GetParam()});
  seen.insert(seen.end(), rest.begin(), rest.end());
  Indices whole;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    const auto order = philox_permutation(2, epoch, 10);
    whole.insert(whole.end(), order.begin(), order.begin() + 8);
  }
  EXPECT_EQ(seen, whole);
}

TEST_P(Resume, ALoaderThatDropsLastStillTurnsTheEpoch) {
  ResumableSampler sampler(10, {.seed = 2});
  auto loader = torch::data::make_data_loader(
      IndexDataset(10), sampler,
      torch::data::DataLoaderOptions(4).workers(GetParam()).drop_last(true));
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    Indices seen;
    for (auto& batch : *loader) {
      EXPECT_EQ(sampler.epoch(), epoch);
      seen.insert(seen.end(), batch.begin(), batch.end());
      sampler.consume(static_cast<int64_t>(batch.size()));
    }
    const auto order = philox_permutation(2, epoch, 10);
    EXPECT_EQ(seen, Indices(order.begin(), order.begin() + 8));
  }
}

INSTANTIATE_TEST_SUITE_P(Workers, Resume, ::testing::Values(size_t{0}, size_t{2}));

TEST(ResumableSampler, CountsWhatIsConsumedNotWhatIsDrawn) {
  ResumableSampler sampler(10);
  sampler.reset();
  sampler.next(4);
  sampler.next(4);
  EXPECT_EQ(sampler.consumed(), 0);
  sampler.consume(4);
  EXPECT_EQ(sampler.consumed(), 4);
  EXPECT_EQ(sampler.epoch(), 0);
  sampler.next(4);
  sampler.consume(6);
  EXPECT_EQ(sampler.consumed(), 0);
  EXPECT_EQ(sampler.epoch(), 1);
  EXPECT_EQ(sampler.next(4), std::nullopt);
}

TEST(ResumableSampler, ResumesWithLargerBatchesThanTheEpochHasLeft) {
  ResumableSampler first(10, {.seed = 3, .drop_last = true});
  train(first, 1, {.batch_size = 2}, 4);
  ResumableSampler second(10, {.drop_last = true});
  second.load_state_dict(first.state_dict());
  const auto order = philox_permutation(3, 1, 10);
  EXPECT_EQ(train(second, 2, {.batch_size = 5}), Indices(order.begin(), order.end()));
}

TEST(ResumableSampler, RollsBackToAnEarlierState) {
  ResumableSampler sampler(8, {.seed = 1});
  train(sampler, 9, {.batch_size = 2}, 3);
  const auto saved = sampler.state_dict();
  const auto first = train(sampler, 9, {.batch_size = 2}, 5);
  sampler.load_state_dict(saved);
  EXPECT_EQ(train(sampler, 9, {.batch_size = 2}, 5), first);
}

TEST(ResumableSampler, KeepsAnySeed) {
  constexpr uint64_t kSeed = 0xFFFF'FFFF'0000'0001;
  ResumableSampler first(6, {.seed = kSeed});
  ResumableSampler second(6);
  second.load_state_dict(first.state_dict());
  EXPECT_EQ(train(second, 1, {}), expected(kSeed, 1, 6));
}

TEST(ResumableSampler, RefusesAForgottenConsume) {
  ResumableSampler sampler(4);
  sampler.reset();
  while (sampler.next(2)) {
  }
  EXPECT_EQ(
      message_of<c10::ValueError>([&] { sampler.reset(); }),
      "the last pass drew all 4 examples, but none was consumed, so the next one would repeat "
      "them; call sampler.consume(n) after each training step");
}

TEST(ResumableSampler, RefusesToConsumeWhatWasNotDrawn) {
  ResumableSampler sampler(10);
  sampler.next(4);
  EXPECT_EQ(message_of<c10::ValueError>([&] { sampler.consume(5); }),
            "cannot consume 5 examples: only 4 are drawn and not yet consumed");
  EXPECT_EQ(message_of<c10::ValueError>([&] { sampler.consume(-1); }),
            "examples must be a finite number, 0 or above, but is -1");
}

TEST(ResumableSampler, RefusesAnotherDataset) {
  ResumableSampler saved(10), other(12);
  EXPECT_EQ(message_of<c10::ValueError>([&] { other.load_state_dict(saved.state_dict()); }),
            "the saved position is in a dataset of 10 examples, but this sampler is for 12: their "
            "orders differ; resume with the dataset of the saved run");
  EXPECT_EQ(message_of<c10::ValueError>([&] { saved.reset(12); }),
            "the sampler is for 10 examples and cannot change to 12; make a new one");
}

TEST(ResumableSampler, RefusesTheOtherKindOfOrder) {
  ResumableSampler saved(10), other(10, {.shuffle = false});
  EXPECT_EQ(message_of<c10::ValueError>([&] { other.load_state_dict(saved.state_dict()); }),
            "the saved order is shuffled, but this sampler's is sequential; set shuffle as it was");
}

TEST(ResumableSampler, RefusesAPositionOutOfRange) {
  ResumableSampler sampler(10);
  auto state = sampler.state_dict();
  state["consumed"] = state_value(int64_t{10});
  EXPECT_EQ(message_of<c10::ValueError>([&] { sampler.load_state_dict(state); }),
            "the saved position, epoch 0 and example 10 of 10, is out of range");
}

TEST(ResumableSampler, RefusesSizesThatLeaveNothing) {
  EXPECT_EQ(message_of<c10::ValueError>([] { ResumableSampler(0); }),
            "the size of the dataset must be 1 or more, but is 0");
  ResumableSampler sampler(4, {.drop_last = true});
  EXPECT_EQ(message_of<c10::ValueError>([&] { sampler.next(5); }),
            "batch_size is 5, but there are only 4 examples, so drop_last would leave none");
  EXPECT_EQ(message_of<c10::ValueError>([&] { sampler.next(0); }),
            "batch_size must be 1 or more, but is 0");
}

}  // namespace
}  // namespace torchlore
