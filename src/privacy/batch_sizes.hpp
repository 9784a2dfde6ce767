#pragma once

#include <cstdint>

#include "torchlore/privacy/privacy_ledger.hpp"

namespace torchlore::privacy {

/// Whether the sizes of logical batches can be those of the sampling that is accounted for. What it refuses
/// happens to an honest sampler with a probability below 1e-12.
class BatchSizes {
 public:
  BatchSizes(int64_t dataset_size, double expected_batch, Sampling sampling);

  /// @throws c10::ValueError if a batch of so many examples is not what was declared; nothing is noted then.
  void check(int64_t examples) const;
  /// Notes a batch that was released.
  void add(int64_t examples);

 private:
  int64_t most() const;

  int64_t dataset_size_;
  double expected_;
  Sampling sampling_;
  int64_t batches_ = 0;
  double total_ = 0;
  int64_t last_ = -1;
  int64_t equal_in_a_row_ = 0;
  int64_t most_equal_;  // in a row
};

}  // namespace torchlore::privacy
