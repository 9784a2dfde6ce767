#include "timing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>

namespace torchlore::claims {

Contender timed(std::string name, std::function<void()> work, std::function<void()> prepare) {
  auto run = [work = std::move(work), prepare = std::move(prepare)](int64_t repeats) {
    using Clock = std::chrono::steady_clock;
    Clock::duration total{};
    for (int64_t i = 0; i < repeats; ++i) {
      if (prepare) prepare();
      const auto start = Clock::now();
      work();
      total += Clock::now() - start;
    }
    return std::chrono::duration<double>(total).count() / static_cast<double>(repeats);
  };
  return {std::move(name), std::move(run)};
}

namespace {

// Repeats of one sample: enough for min_seconds at the speed of the warm-up's best run.
int64_t warm_up(const Contender& contender, const Sampling& sampling) {
  double best = contender.run(1);
  for (int64_t i = 1; i < sampling.warmup; ++i) best = std::min(best, contender.run(1));
  return std::max<int64_t>(1, std::llround(std::ceil(sampling.min_seconds / best)));
}

}  // namespace

std::vector<std::vector<double>> interleave(const std::vector<Contender>& contenders,
                                            const Sampling& sampling) {
  std::vector<int64_t> repeats;
  for (const auto& contender : contenders) repeats.push_back(warm_up(contender, sampling));
  std::vector<std::vector<double>> seconds(contenders.size());
  std::vector<size_t> order(contenders.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(sampling.seed);
  for (int64_t round = 0; round < sampling.rounds; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t i : order) seconds[i].push_back(contenders[i].run(repeats[i]));
  }
  return seconds;
}

std::string absolute_times(const std::vector<Contender>& contenders,
                           const std::vector<std::vector<double>>& seconds) {
  std::string text;
  for (size_t i = 0; i < contenders.size(); ++i) {
    if (i > 0) text += ", ";
    text += fmt::format("{} {:.4g} ms", contenders[i].name, 1e3 * median(seconds[i]));
  }
  return text;
}

}  // namespace torchlore::claims
