#include "torchlore/memory/checkpoint_plan.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <limits>

#include "torchlore/core/error.hpp"

namespace torchlore {
namespace {

using Segment = CheckpointPlan::Segment;

/// A partial plan: what the blocks so far keep, and the seconds that are recomputed.
struct State {
  int64_t kept;
  double cost;
  size_t before;  // index of the state that it came from, at `segment.begin`
  Segment segment;
};

/// All partial plans up to one block that no other one beats: `kept` rises, `cost` falls.
using Frontier = std::vector<State>;

constexpr size_t kMostStates = 4096;

/// Keeps the cheapest of each of `kMostStates` ranges of kept bytes.
void thin(Frontier& frontier) {
  if (frontier.size() <= kMostStates) return;
  const auto low = static_cast<double>(frontier.front().kept);
  const auto range = static_cast<double>(frontier.back().kept) - low;
  const auto bucket = [&](const State& s) {
    return static_cast<int64_t>((static_cast<double>(s.kept) - low) / range * (kMostStates - 1));
  };
  Frontier thinned;
  for (const auto& state : frontier) {  // of a range, the last is the cheapest
    // The first of all has to stay: it is the one that fits if any does.
    if (thinned.size() > 1 && bucket(thinned.back()) == bucket(state)) thinned.pop_back();
    thinned.push_back(state);
  }
  frontier = std::move(thinned);
}

void keep_unbeaten(Frontier& frontier) {
  std::sort(frontier.begin(), frontier.end(), [](const State& a, const State& b) {
    return a.kept != b.kept ? a.kept < b.kept : a.cost < b.cost;
  });
  Frontier unbeaten;
  for (const auto& state : frontier) {
    if (unbeaten.empty() || state.cost < unbeaten.back().cost) unbeaten.push_back(state);
  }
  thin(unbeaten);
  frontier = std::move(unbeaten);
}

/// Bytes that a block keeps if it is left alone.
int64_t kept_alone(const BlockCost& block) {
  return block.saved.count() + (block.input_saved ? block.input.count() : 0);
}

/// What recomputing a segment puts on top of what comes before it: its input, which it kept, and all
/// that its blocks keep, by end of the segment.
std::vector<int64_t> recomputed_bytes(const std::vector<BlockCost>& blocks, size_t begin) {
  std::vector<int64_t> result(blocks.size() + 1);
  int64_t sum = blocks[begin].input.count() + blocks[begin].saved.count();
  result[begin + 1] = sum;
  for (size_t end = begin + 2; end <= blocks.size(); ++end) {
    result[end] = sum += kept_alone(blocks[end - 1]);
  }
  return result;
}

double sum_of_seconds(const std::vector<BlockCost>& blocks, const Segment& segment) {
  double sum = 0;
  for (int64_t i = segment.begin; i < segment.end; ++i) {
    sum += blocks[static_cast<size_t>(i)].seconds;
  }
  return sum;
}

/// Calls `f(segment, kept, peak)` for each way to go on from block `i`, where `before` is kept: by one
/// block left alone, or by a checkpointed segment. `peak` is what the step itself needs.
template <typename F>
void for_each_step(const std::vector<BlockCost>& blocks, size_t i, int64_t before, const F& f) {
  const auto first = static_cast<int64_t>(i);
  const int64_t alone = before + kept_alone(blocks[i]);
  f(Segment{first, first + 1, false}, alone, alone);
  const int64_t kept = before + blocks[i].input.count();
  const auto recomputed = recomputed_bytes(blocks, i);
  for (size_t end = i + 1; end <= blocks.size(); ++end) {
    f(Segment{first, static_cast<int64_t>(end), true}, kept, before + recomputed[end]);
  }
}

/// All unbeaten partial plans, by the number of blocks, whose peak stays within the budget.
std::vector<Frontier> search(const std::vector<BlockCost>& blocks, int64_t budget) {
  std::vector<Frontier> reached(blocks.size() + 1);
  reached[0].push_back({0, 0, 0, {}});
  for (size_t i = 0; i <= blocks.size(); ++i) {
    keep_unbeaten(reached[i]);
    if (i == blocks.size()) break;
    for (size_t s = 0; s < reached[i].size(); ++s) {
      const State& from = reached[i][s];
      for_each_step(blocks, i, from.kept, [&](const Segment& segment, int64_t kept, int64_t peak) {
        if (peak > budget) return;
        const double more = segment.checkpointed ? sum_of_seconds(blocks, segment) : 0;
        reached[static_cast<size_t>(segment.end)].push_back({kept, from.cost + more, s, segment});
      });
    }
  }
  return reached;
}

/// Whether any plan stays within the budget: what has kept the least can go on wherever another can.
bool feasible(const std::vector<BlockCost>& blocks, int64_t budget) {
  constexpr auto kNever = std::numeric_limits<int64_t>::max();
  std::vector<int64_t> least(blocks.size() + 1, kNever);
  least[0] = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (least[i] == kNever) continue;
    for_each_step(blocks, i, least[i], [&](const Segment& segment, int64_t kept, int64_t peak) {
      auto& there = least[static_cast<size_t>(segment.end)];
      if (peak <= budget) there = std::min(there, kept);
    });
  }
  return least.back() != kNever;
}

/// The segments that led to a state of the last frontier; neighbours left alone become one.
std::vector<Segment> trace(const std::vector<Frontier>& reached, const State& last) {
  std::vector<Segment> segments;
  for (const State* state = &last; state->segment.end > 0;
       state = &reached[static_cast<size_t>(state->segment.begin)][state->before]) {
    if (!segments.empty() && !segments.back().checkpointed && !state->segment.checkpointed) {
      segments.back().begin = state->segment.begin;
    } else {
      segments.push_back(state->segment);
    }
  }
  std::reverse(segments.begin(), segments.end());
  return segments;
}

void check_costs(const std::vector<BlockCost>& blocks) {
  TORCH_CHECK_VALUE(!blocks.empty(), "a checkpoint plan needs one block or more");
  for (const auto& block : blocks) {
    check_not_negative("BlockCost.seconds", block.seconds);
    check_not_negative("BlockCost.input", static_cast<double>(block.input.count()));
    check_not_negative("BlockCost.saved", static_cast<double>(block.saved.count()));
  }
}

}  // namespace

CheckpointPlan::CheckpointPlan(std::vector<BlockCost> blocks, std::vector<Segment> segments)
    : blocks_(std::move(blocks)), segments_(std::move(segments)) {
  check_costs(blocks_);
  int64_t next = 0;
  for (const auto& segment : segments_) {
    TORCH_CHECK_VALUE(segment.begin == next && segment.end > segment.begin,
                      "the segments of a checkpoint plan must follow on each other from block 0, "
                      "but one is [",
                      segment.begin, ", ", segment.end, ") where ", next, " comes next");
    next = segment.end;
  }
  TORCH_CHECK_VALUE(next == static_cast<int64_t>(blocks_.size()),
                    "the segments of a checkpoint plan end at block ", next, ", but there are ",
                    blocks_.size(), " blocks");
}

CheckpointPlan CheckpointPlan::equal(int64_t blocks, int64_t segments) {
  check_count("blocks", blocks);
  check_count("segments", segments);
  segments = std::min(segments, blocks);
  std::vector<Segment> parts;
  for (int64_t i = 0; i < segments; ++i) {
    parts.push_back({blocks * i / segments, blocks * (i + 1) / segments, i + 1 < segments});
  }
  return {std::vector<BlockCost>(static_cast<size_t>(blocks)), std::move(parts)};
}

CheckpointPlan CheckpointPlan::for_budget(std::vector<BlockCost> blocks, Bytes budget) {
  check_costs(blocks);
  const auto reached = search(blocks, budget.count());
  TORCH_CHECK_VALUE(!reached.back().empty(), "a budget of ", budget,
                    " is below the smallest that these ", blocks.size(), " blocks can do with, ",
                    smallest_budget(blocks), " (", smallest_budget(blocks).count(),
                    " bytes); give more, or checkpoint inside the blocks");
  auto segments = trace(reached, reached.back().back());
  CheckpointPlan plan(std::move(blocks), std::move(segments));
  plan.budget_ = budget;
  return plan;
}

Bytes CheckpointPlan::smallest_budget(const std::vector<BlockCost>& blocks) {
  check_costs(blocks);
  int64_t too_small = -1;
  int64_t enough = 0;
  for (const auto& block : blocks) enough += kept_alone(block);
  while (enough - too_small > 1) {
    const int64_t middle = too_small + (enough - too_small) / 2;
    (feasible(blocks, middle) ? enough : too_small) = middle;
  }
  return Bytes(enough);
}

Bytes CheckpointPlan::peak() const {
  int64_t kept = 0;
  int64_t peak = 0;
  for (const auto& segment : segments_) {
    const auto begin = static_cast<size_t>(segment.begin);
    if (segment.checkpointed) {
      peak =
          std::max(peak, kept + recomputed_bytes(blocks_, begin)[static_cast<size_t>(segment.end)]);
      kept += blocks_[begin].input.count();
    } else {
      for (auto i = begin; i < static_cast<size_t>(segment.end); ++i)
        kept += kept_alone(blocks_[i]);
    }
  }
  return Bytes(std::max(peak, kept));
}

double CheckpointPlan::recomputed_seconds() const {
  double sum = 0;
  for (const auto& segment : segments_) {
    if (segment.checkpointed) sum += sum_of_seconds(blocks_, segment);
  }
  return sum;
}

std::ostream& operator<<(std::ostream& out, const CheckpointPlan& plan) {
  if (plan.empty()) return out << "no checkpoint plan yet\n";
  const auto number = [](const char* format, double value) {
    char text[32];
    std::snprintf(text, sizeof text, format, value);
    return std::string(text);
  };
  out << plan.blocks().size() << " blocks in " << plan.segments().size() << " segments, peak "
      << plan.peak() << ", recomputed " << number("%.3g ms", plan.recomputed_seconds() * 1e3)
      << '\n';
  for (const auto& segment : plan.segments()) {
    out << "  [" << segment.begin << ", " << segment.end << ") "
        << (segment.checkpointed ? "checkpointed" : "left alone") << '\n';
  }
  return out;
}

}  // namespace torchlore
