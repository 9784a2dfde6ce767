#pragma once

#include <cstdint>
#include <optional>

#include "torchlore/data/random_batches.hpp"

namespace torchlore {

/// Options of `PoissonSampler`.
struct PoissonSamplerOptions {
  /// Examples a step, on average: above 0, at most the size of the data set.
  double expected_batch = 0;
  /// Batches a pass gives; 0: as many as hold, on average, the data set once.
  int64_t steps_per_pass = 0;
  /// Nothing: drawn from the operating system's entropy, by ChaCha20, as privacy needs it. A number: the
  /// batches are a function of (seed, step), for experiments; who knows the seed knows who was drawn, and
  /// the gain from sampling is lost to them.
  std::optional<uint64_t> seed_not_secure = std::nullopt;
};

/// Poisson sampling: each step takes each example by itself, with the same probability. The size of a batch
/// is random, and may be 0. This is what the accounting of `Sampling::poisson` is for; shuffled batches are
/// something else.
///
/// The probability is expected_batch / size, rounded down to a multiple of 2^-64. How to use it:
/// `RandomBatches`.
class PoissonSampler : public RandomBatches {
 public:
  /// @param size examples of the data set.
  /// @throws c10::ValueError if size < 1, expected_batch is not in (0, size], or steps_per_pass < 0.
  PoissonSampler(int64_t size, const PoissonSamplerOptions& options);
};

}  // namespace torchlore
