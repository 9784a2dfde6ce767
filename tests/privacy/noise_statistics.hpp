#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "golden_rows.hpp"

/// What the tests of noise compare samples with.
namespace torchlore::testing {

/// The probabilities of one discrete distribution, from tests/oracles/discrete_noise.py.
struct DiscreteDistribution {
  bool laplace = false;
  double scale = 0;
  std::vector<double> probability;  // of y = 0, 1, …: of each sign
};

inline std::vector<DiscreteDistribution> discrete_distributions() {
  std::vector<DiscreteDistribution> all;
  for (const auto& row : golden_rows("discrete_noise.txt")) {
    if (row[2] == 0) all.push_back({.laplace = row[0] == 1, .scale = row[1], .probability = {}});
    if (row[2] >= 0) all.back().probability.push_back(row[3]);
  }
  return all;
}

/// Pearson's statistic over all y whose expectation is 5 or more, and one cell for the others, as its
/// distance from the expectation in standard deviations.
inline double surprise(const std::vector<int64_t>& samples, const DiscreteDistribution& expected) {
  std::map<int64_t, double> counts;
  for (const auto y : samples) ++counts[y];
  const auto draws = static_cast<double>(samples.size());
  double statistic = 0, others = draws, seen_others = draws;
  int cells = 0;
  const auto last = static_cast<int64_t>(expected.probability.size()) - 1;
  for (int64_t y = -last; y <= last; ++y) {
    const double e = draws * expected.probability[static_cast<size_t>(std::abs(y))];
    if (e < 5) continue;
    statistic += (counts[y] - e) * (counts[y] - e) / e;
    others -= e;
    seen_others -= counts[y];
    ++cells;
  }
  if (others >= 5) {
    statistic += (seen_others - others) * (seen_others - others) / others;
  } else {
    EXPECT_LE(seen_others, others + 30);
  }
  return (statistic - (cells - 1)) / std::sqrt(2.0 * std::max(1, cells - 1));
}

/// Kolmogorov–Smirnov distance times the square root of the number: above 1.95 once in 1000.
template <typename Cdf>
double kolmogorov_smirnov(std::vector<double> samples, const Cdf& cdf) {
  std::sort(samples.begin(), samples.end());
  const auto n = static_cast<double>(samples.size());
  double distance = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const double p = cdf(samples[i]), rank = static_cast<double>(i);
    distance = std::max({distance, p - rank / n, (rank + 1) / n - p});
  }
  return distance * std::sqrt(n);
}

inline double normal_cdf(double x) { return std::erfc(-x / M_SQRT2) / 2; }
inline double laplace_cdf(double x) { return x < 0 ? std::exp(x) / 2 : 1 - std::exp(-x) / 2; }

}  // namespace torchlore::testing
