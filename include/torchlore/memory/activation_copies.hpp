#pragma once

#include <cstdint>

namespace torchlore {

/// What `CompressActivations` or `OffloadActivations` did with the tensors that autograd saved.
struct ActivationCopies {
  int64_t tensors = 0;  ///< tensors taken over; a storage saved several times counts each time
  int64_t original_bytes = 0;  ///< of the values taken over, each storage once
  int64_t encoded_bytes = 0;   ///< what they take in the new form, where they were
  int64_t resident_bytes = 0;  ///< of the values given back because others keep them alive anyway
};

}  // namespace torchlore
