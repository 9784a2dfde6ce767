#pragma once

#include <c10/util/Exception.h>

namespace torchlore::memory {

/// Ends an attempt that went well here, because that of another rank did not.
struct OtherRankFailed : c10::Error {
  using Error::Error;
};

}  // namespace torchlore::memory
