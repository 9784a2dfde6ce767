#pragma once

#include <cstdint>
#include <optional>

#include "torchlore/data/random_batches.hpp"

namespace torchlore {

/// Options of `FixedSizeSampler`.
struct FixedSizeSamplerOptions {
  int64_t batch = 0;           ///< examples a step: 1 to the size of the data set
  int64_t steps_per_pass = 0;  ///< as in PoissonSamplerOptions
  /// As in PoissonSamplerOptions.
  std::optional<uint64_t> seed_not_secure = std::nullopt;
};

/// Each step takes a batch of the same size, every such set of examples with the same probability and
/// independently of all other steps. Account for it with `Sampling::fixed_size`: neighbours differ by one
/// example replaced. (Going through a shuffled data set is something else, and covered by neither.)
class FixedSizeSampler : public RandomBatches {
 public:
  /// @param size examples of the data set.
  /// @throws c10::ValueError if size < 1, batch is not in [1, size], or steps_per_pass < 0.
  FixedSizeSampler(int64_t size, const FixedSizeSamplerOptions& options);
};

}  // namespace torchlore
