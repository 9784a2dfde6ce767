#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../claim.hpp"
#include "statistics.hpp"

namespace torchlore::claims {

/// One side of a comparison: runs its work `repeats` times and returns the seconds of one.
struct Contender {
  std::string name = {};
  std::function<double(int64_t repeats)> run = {};
};

/// A contender that times `work`; `prepare` runs before each repeat and is not timed.
Contender timed(std::string name, std::function<void()> work,
                std::function<void()> prepare = nullptr);

/// How often, and how long.
struct Sampling {
  int64_t rounds = 15;        ///< samples of each contender
  int64_t warmup = 3;         ///< runs before the first sample
  double min_seconds = 0.05;  ///< of one sample; short work is repeated
  uint64_t seed = 20260101;   ///< of the order within each round
  static Sampling of(const Context& context) {
    return context.quick() ? Sampling{.rounds = 3, .warmup = 1, .min_seconds = 0.001} : Sampling{};
  }
};

/// Samples all contenders in rounds, in a random order within each round, so that whatever else the
/// machine does meets all sides alike. Returns the seconds of one run: [contender][round].
std::vector<std::vector<double>> interleave(const std::vector<Contender>& contenders,
                                            const Sampling& sampling);

/// "ours 12.3 ms, theirs 45.6 ms": the medians, for the note of a line.
std::string absolute_times(const std::vector<Contender>& contenders,
                           const std::vector<std::vector<double>>& seconds);

}  // namespace torchlore::claims
