#pragma once

#include <cstdint>

namespace torchlore::claims {

/// The memory that is resident in this process now, in bytes (VmRSS).
int64_t resident_bytes();
/// The most memory that was resident in this process, in bytes (VmHWM).
int64_t peak_rss_bytes();
/// Starts counting `peak_rss_bytes` anew. Returns false where the system does not allow it.
bool reset_peak_rss();

}  // namespace torchlore::claims
