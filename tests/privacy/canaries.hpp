#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>
#include <vector>

/// What audits look for, in the tests and in the claim.
namespace torchlore::testing {

/// Canaries whose gradients are orthogonal: each has a row of an embedding to itself, and is in the data
/// with probability 1/2.
struct Canaries {
  Canaries(int64_t count, uint64_t seed) {
    std::mt19937_64 draw(seed);
    for (int64_t i = 0; i < count; ++i) {
      included.push_back(draw() % 2 == 0);
      if (included.back()) tokens.push_back(i);
    }
  }
  int64_t count() const { return static_cast<int64_t>(included.size()); }

  std::vector<bool> included = {};
  std::vector<int64_t> tokens = {};
};

/// One score for each canary.
inline std::vector<double> scores_of(const at::Tensor& released) {
  const auto flat = released.to(at::kDouble).reshape(-1).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

/// The scores of the canaries that were in the data, and of those that were not.
struct Split {
  std::vector<double> with = {}, without = {};
};

inline Split split(const std::vector<double>& scores, const Canaries& canaries) {
  Split result;
  for (size_t i = 0; i < scores.size(); ++i) {
    (canaries.included[i] ? result.with : result.without).push_back(scores[i]);
  }
  return result;
}

}  // namespace torchlore::testing
