#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "../claim.hpp"

namespace torchlore::claims {

inline double median(std::vector<double> values) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// The rank k (from 1) such that [x(k), x(n+1-k)] covers the median with a probability of 95 % or
/// more: the number of values below the median is binomial(n, 1/2), so what is left out is twice
/// its lower tail. Below 6 values even the extremes cover less; then 1.
inline size_t median_interval_rank(size_t n) {
  double term = std::pow(0.5, static_cast<double>(n));  // P(0 values below the median)
  double tail = term;
  size_t rank = 1;
  for (size_t k = 1; k < n; ++k) {
    term *= static_cast<double>(n - k + 1) / static_cast<double>(k);
    tail += term;
    if (2 * tail > 0.05) break;
    rank = k + 1;
  }
  return rank;
}

/// The median with its order-statistic interval.
inline Estimate median_estimate(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const size_t rank = median_interval_rank(values.size());
  return {median(values), values[rank - 1], values[values.size() - rank]};
}

/// The median of the paired ratios ours[i] / base[i].
inline Estimate ratio(const std::vector<double>& ours, const std::vector<double>& base) {
  std::vector<double> ratios(std::min(ours.size(), base.size()));
  for (size_t i = 0; i < ratios.size(); ++i) ratios[i] = ours[i] / base[i];
  return median_estimate(std::move(ratios));
}

}  // namespace torchlore::claims
