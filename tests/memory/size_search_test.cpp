#include "torchlore/memory/size_search.hpp"

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

/// Runs a batch where parts of up to `capacity` fit; counts the failures.
int64_t run(SizeSearch& sizes, int64_t batch, int64_t capacity, int64_t& failures) {
  auto size = sizes.choose(batch);
  for (; size > capacity; ++failures) size = sizes.failed(batch, size);
  sizes.fitted(size);
  return size;
}

TEST(SizeSearch, RunsWholeBatchesWhileTheyFit) {
  SizeSearch sizes;
  int64_t failures = 0;
  for (const int64_t batch : {8, 100, 3}) EXPECT_EQ(run(sizes, batch, 100, failures), batch);
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(sizes.fits(), 100);
  EXPECT_EQ(sizes.fails(), SizeSearch::kNone);
}

TEST(SizeSearch, HalvesUntilItFitsAndRemembers) {
  SizeSearch sizes;
  int64_t failures = 0;
  EXPECT_EQ(run(sizes, 100, 30, failures), 25);
  EXPECT_EQ(failures, 2);
  EXPECT_EQ(run(sizes, 100, 30, failures), 25);
  EXPECT_EQ(run(sizes, 20, 30, failures), 20);
  EXPECT_EQ(failures, 2);
  EXPECT_EQ(run(sizes, 26, 30, failures), 13) << "in equal parts";
}

TEST(SizeSearch, TriesTheMiddleAfterSoManyBatches) {
  SizeSearch sizes({.search_every = 3});
  int64_t failures = 0;
  std::vector<int64_t> seen;
  for (int i = 0; i < 11; ++i) seen.push_back(run(sizes, 64, 50, failures));
  // 64 fails, 32 fits three times; 48 fits, where 64 take two equal parts; 56 fails, then 52.
  EXPECT_EQ(seen, (std::vector<int64_t>{32, 32, 32, 48, 32, 32, 32, 32, 32, 32, 32}));
  EXPECT_EQ(sizes.fits(), 48);
  EXPECT_EQ(sizes.fails(), 52) << "48 is more than 0.9 of 51";
  EXPECT_EQ(failures, 3);
}

TEST(SizeSearch, WaitsAsLongAfterALargerSizeThatFits) {
  SizeSearch sizes({.search_every = 3});
  int64_t failures = 0;
  std::vector<int64_t> seen;
  for (int i = 0; i < 8; ++i) seen.push_back(run(sizes, 64, 60, failures));
  EXPECT_EQ(seen, (std::vector<int64_t>{32, 32, 32, 48, 32, 32, 32, 56}));
}

TEST(SizeSearch, ComesWithinTheShareAskedFor) {
  for (const double close_enough : {0.5, 0.8, 0.9, 1.0}) {
    for (int64_t capacity = 1; capacity <= 300; ++capacity) {
      SizeSearch sizes({.search_every = 2, .close_enough = close_enough});
      int64_t failures = 0;
      for (int i = 0; i < 60; ++i) run(sizes, 256, capacity, failures);
      EXPECT_GE(static_cast<double>(sizes.fits()),
                close_enough * static_cast<double>(std::min<int64_t>(capacity, 256)))
          << capacity;
      EXPECT_LE(sizes.fits(), capacity);
      EXPECT_LE(failures, 16) << capacity;
      EXPECT_TRUE(sizes.fails() > capacity);
    }
  }
}

TEST(SizeSearch, TriesWhatFailedAgainAfterEverLongerTimes) {
  SizeSearch sizes({.search_every = 1, .close_enough = 0.5, .recheck_after = 10});
  int64_t failures = 0;
  std::vector<int> rechecks;
  for (int i = 0; i < 80; ++i) {
    const auto before = failures;
    run(sizes, 16, 8, failures);
    if (failures > before && i > 0) rechecks.push_back(i);
  }
  // 8 fits, 16 does not: close enough at 0.5. Rechecked after 10, 20 and 40 batches.
  EXPECT_EQ(rechecks, (std::vector<int>{10, 30, 70}));
  EXPECT_EQ(run(sizes, 16, 16, failures), 8);
  for (int i = 0; i < 80; ++i) run(sizes, 16, 16, failures);
  EXPECT_EQ(run(sizes, 16, 16, failures), 16) << "memory has become free";
  EXPECT_EQ(sizes.fails(), SizeSearch::kNone);
  int64_t batches = 0;
  run(sizes, 16, 8, failures);
  for (const auto before = failures; failures == before; ++batches) run(sizes, 16, 8, failures);
  EXPECT_EQ(batches, 10) << "the times are short again";
}

TEST(SizeSearch, TriesWhatFailedAgainWhenTheLargestSizeIsKnownExactly) {
  SizeSearch sizes({.search_every = 1, .close_enough = 1, .recheck_after = 10});
  int64_t failures = 0;
  for (int i = 0; i < 12; ++i) run(sizes, 64, 40, failures);
  EXPECT_EQ(sizes.fits(), 40);
  EXPECT_EQ(sizes.fails(), 41);
  EXPECT_EQ(run(sizes, 64, 64, failures), 32) << "in equal parts";
  for (int i = 0; i < 40; ++i) run(sizes, 64, 64, failures);
  EXPECT_EQ(sizes.fails(), SizeSearch::kNone);
}

TEST(SizeSearch, StartsAnewWhereMemoryHasBecomeScarce) {
  SizeSearch sizes;
  int64_t failures = 0;
  run(sizes, 64, 64, failures);
  EXPECT_EQ(run(sizes, 64, 20, failures), 16);
  EXPECT_EQ(sizes.fits(), 16);
  EXPECT_EQ(sizes.fails(), 32);
}

TEST(SizeSearch, NeverGoesBelowTheSmallest) {
  SizeSearch sizes({.min_size = 6});
  EXPECT_EQ(sizes.choose(16), 16);
  EXPECT_EQ(sizes.failed(16, 16), 8);
  EXPECT_TRUE(sizes.can_shrink(8));
  EXPECT_EQ(sizes.failed(16, 8), 6);
  EXPECT_FALSE(sizes.can_shrink(6));
  EXPECT_EQ(sizes.failed(32, 32), 16) << "a larger size says nothing new";
  EXPECT_EQ(sizes.fails(), 8);
  EXPECT_EQ(SizeSearch().choose(0), 1);
}

TEST(SizeSearch, SavesWhatItKnows) {
  SizeSearch sizes({.search_every = 3}), loaded({.search_every = 3});
  int64_t failures = 0;
  for (int i = 0; i < 5; ++i) run(sizes, 64, 50, failures);
  loaded.load_state_dict(sizes.state_dict());
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(run(loaded, 64, 50, failures), run(sizes, 64, 50, failures)) << i;
  }
  auto state = sizes.state_dict();
  state["fits"] = state_value(int64_t{99});
  EXPECT_EQ(message_of<c10::ValueError>([&] { loaded.load_state_dict(state); }),
            "the saved sizes cannot be: fits 99, fails 52, good " +
                std::to_string(state_int(state, "good")) + ", patience 1000");
}

TEST(SizeSearch, ChecksItsOptions) {
  const auto text = [](const SizeSearchOptions& options) {
    return message_of<c10::ValueError>([&] { SizeSearch sizes(options); });
  };
  EXPECT_EQ(text({.min_size = 0}), "min_size must be 1 or more, but is 0");
  EXPECT_EQ(text({.search_every = 0}), "search_every must be 1 or more, but is 0");
  EXPECT_EQ(text({.close_enough = 0.4}), "close_enough must lie in [0.5, 1], but is 0.4");
  EXPECT_EQ(text({.recheck_after = 0}), "recheck_after must be 1 or more, but is 0");
}

}  // namespace
}  // namespace torchlore
