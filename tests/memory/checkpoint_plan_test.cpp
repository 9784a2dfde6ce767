#include "torchlore/memory/checkpoint_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <sstream>

#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;
using Segment = CheckpointPlan::Segment;

/// Peak and time of a plan, by following the model's text tensor by tensor.
struct Simulated {
  int64_t peak = 0;
  double seconds = 0;
};

Simulated simulate(const std::vector<BlockCost>& blocks, const std::vector<Segment>& segments) {
  Simulated result;
  int64_t held = 0;
  std::vector<int64_t> of_segment;
  const auto hold = [&](int64_t bytes) {
    held += bytes;
    result.peak = std::max(result.peak, held);
  };
  const auto plain = [&](int64_t i) {
    const auto& b = blocks[static_cast<size_t>(i)];
    return b.saved.count() + (b.input_saved ? b.input.count() : 0);
  };
  for (const auto& s : segments) {  // forward
    const auto before = held;
    if (s.checkpointed) {
      hold(blocks[static_cast<size_t>(s.begin)].input.count());
    } else {
      for (int64_t i = s.begin; i < s.end; ++i) hold(plain(i));
    }
    of_segment.push_back(held - before);
  }
  for (size_t k = segments.size(); k-- > 0;) {  // backward
    const auto& s = segments[k];
    const auto before = held;
    if (s.checkpointed) {
      for (int64_t i = s.begin; i < s.end; ++i) {
        const auto& b = blocks[static_cast<size_t>(i)];
        // The first input is there already.
        hold(i == s.begin ? b.saved.count() : plain(i));
        result.seconds += b.seconds;
      }
    }
    held = before - of_segment[k];
  }
  EXPECT_EQ(held, 0);
  return result;
}

/// Every way to cut n blocks and to choose which parts are checkpointed.
std::vector<std::vector<Segment>> all_plans(int64_t n) {
  std::vector<std::vector<Segment>> plans;
  for (int64_t cuts = 0; cuts < int64_t{1} << (n - 1); ++cuts) {
    std::vector<Segment> parts{{0, 0, false}};
    for (int64_t i = 0; i < n; ++i) {
      parts.back().end = i + 1;
      if (i + 1 < n && (cuts >> i & 1) != 0) parts.push_back({i + 1, i + 1, false});
    }
    for (int64_t chosen = 0; chosen < int64_t{1} << parts.size(); ++chosen) {
      for (size_t k = 0; k < parts.size(); ++k) parts[k].checkpointed = (chosen >> k & 1) != 0;
      plans.push_back(parts);
    }
  }
  return plans;
}

std::vector<BlockCost> random_blocks(int64_t n, std::mt19937& random) {
  std::uniform_int_distribution<int64_t> bytes(0, 40);
  std::vector<BlockCost> blocks;
  for (int64_t i = 0; i < n; ++i) {
    blocks.push_back({.input = Bytes(bytes(random)),
                      .input_saved = bytes(random) % 2 == 0,
                      .saved = Bytes(bytes(random) * (bytes(random) % 3)),
                      .seconds = static_cast<double>(bytes(random)) / 8});
  }
  return blocks;
}

TEST(CheckpointPlan, IsTheBestOfAllPlansAtEveryBudget) {
  std::mt19937 random(1);
  for (int64_t n = 1; n <= 8; ++n) {
    for (int repeat = 0; repeat < (n < 7 ? 30 : 3); ++repeat) {
      const auto blocks = random_blocks(n, random);
      std::vector<Simulated> outcomes;
      int64_t smallest = std::numeric_limits<int64_t>::max();
      int64_t largest = 0;
      for (const auto& plan : all_plans(n)) {
        outcomes.push_back(simulate(blocks, plan));
        smallest = std::min(smallest, outcomes.back().peak);
        largest = std::max(largest, outcomes.back().peak);
      }
      ASSERT_EQ(CheckpointPlan::smallest_budget(blocks).count(), smallest);
      if (smallest > 0) {
        EXPECT_THROW(CheckpointPlan::for_budget(blocks, Bytes(smallest - 1)), c10::ValueError);
      }
      for (int64_t budget = smallest; budget <= largest; budget += 1 + largest / 20) {
        double best = std::numeric_limits<double>::infinity();
        for (const auto& o : outcomes) {
          if (o.peak <= budget) best = std::min(best, o.seconds);
        }
        const auto plan = CheckpointPlan::for_budget(blocks, Bytes(budget));
        const auto simulated = simulate(blocks, plan.segments());
        ASSERT_LE(simulated.peak, budget);
        ASSERT_NEAR(simulated.seconds, best, 1e-9);
        ASSERT_EQ(plan.peak().count(), simulated.peak);
        ASSERT_NEAR(plan.recomputed_seconds(), simulated.seconds, 1e-9);
      }
    }
  }
}

TEST(CheckpointPlan, IsTheBestOfAllPlansOfTenBlocks) {
  std::mt19937 random(2);
  const auto blocks = random_blocks(10, random);
  const auto smallest = CheckpointPlan::smallest_budget(blocks);
  int64_t lowest = std::numeric_limits<int64_t>::max();
  const auto budget = smallest + Bytes(15);
  double best = std::numeric_limits<double>::infinity();
  for (const auto& plan : all_plans(10)) {
    const auto outcome = simulate(blocks, plan);
    lowest = std::min(lowest, outcome.peak);
    if (outcome.peak <= budget.count()) best = std::min(best, outcome.seconds);
  }
  EXPECT_EQ(smallest.count(), lowest);
  EXPECT_NEAR(CheckpointPlan::for_budget(blocks, budget).recomputed_seconds(), best, 1e-9);
}

TEST(CheckpointPlan, ManyUnlikeBlocksStayFeasible) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> part(0.5, 1.5);
  std::vector<BlockCost> blocks;
  for (int i = 0; i < 60; ++i) {
    blocks.push_back({.input = MiB(part(random)),
                      .input_saved = true,
                      .saved = MiB(10 * part(random)),
                      .seconds = part(random)});
  }
  const auto smallest = CheckpointPlan::smallest_budget(blocks);
  double previous = std::numeric_limits<double>::infinity();
  for (const double factor : {1.0, 1.5, 2.0, 4.0}) {
    const Bytes budget(static_cast<int64_t>(static_cast<double>(smallest.count()) * factor));
    const auto plan = CheckpointPlan::for_budget(blocks, budget);
    EXPECT_LE(plan.peak(), budget);
    EXPECT_LE(plan.recomputed_seconds(), previous);
    previous = plan.recomputed_seconds();
  }
  EXPECT_EQ(CheckpointPlan::for_budget(blocks, GiB(1)).recomputed_seconds(), 0);
}

TEST(CheckpointPlan, EqualSegmentsLeaveTheLastAlone) {
  const auto plan = CheckpointPlan::equal(7, 3);
  ASSERT_EQ(plan.segments().size(), 3U);
  EXPECT_EQ(plan.segments()[0].end, 2);
  EXPECT_EQ(plan.segments()[1].end, 4);
  EXPECT_EQ(plan.segments()[2].end, 7);
  EXPECT_TRUE(plan.segments()[1].checkpointed);
  EXPECT_FALSE(plan.segments()[2].checkpointed);
  EXPECT_EQ(CheckpointPlan::equal(2, 5).segments().size(), 2U);
}

TEST(CheckpointPlan, NamesWhatIsWrong) {
  const std::vector<BlockCost> blocks(2, {.input = MiB(1), .input_saved = true, .saved = MiB(4)});
  EXPECT_EQ(message_of<c10::ValueError>([&] { CheckpointPlan::for_budget(blocks, MiB(5)); }),
            "a budget of 5 MiB is below the smallest that these 2 blocks can do with, 6 MiB "
            "(6291456 bytes); give more, or checkpoint inside the blocks");
  EXPECT_EQ(message_of<c10::ValueError>([] { CheckpointPlan::equal(3, 0); }),
            "segments must be 1 or more, but is 0");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              CheckpointPlan(blocks, {{1, 2, true}});
            }),
            "the segments of a checkpoint plan must follow on each other from block 0, but one is "
            "[1, 2) where 0 comes next");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              CheckpointPlan(blocks, {{0, 1, true}});
            }),
            "the segments of a checkpoint plan end at block 1, but there are 2 blocks");
  EXPECT_EQ(message_of<c10::ValueError>([] { CheckpointPlan::for_budget({}, MiB(5)); }),
            "a checkpoint plan needs one block or more");
}

TEST(CheckpointPlan, IsPrinted) {
  const std::vector<BlockCost> blocks(
      3, {.input = MiB(1), .input_saved = true, .saved = MiB(4), .seconds = 0.002});
  std::ostringstream out;
  out << CheckpointPlan(blocks, {{0, 2, true}, {2, 3, false}}) << CheckpointPlan();
  EXPECT_EQ(out.str(),
            "3 blocks in 2 segments, peak 10 MiB, recomputed 4 ms\n"
            "  [0, 2) checkpointed\n"
            "  [2, 3) left alone\n"
            "no checkpoint plan yet\n");
}

}  // namespace
}  // namespace torchlore
