#pragma once

namespace torchlore::memory {

/// Frees what a failed attempt leaves behind, outside of any catch block: the graph that autograd's
/// engine still holds, queued work, and cached memory of the device's allocator and of malloc.
/// @throws what synchronising with a lost device throws.
void free_after_failure();

/// Drops what this thread's autograd queue holds of a backward that failed. LibTorch would keep it,
/// and with it the rest of the graph, until the next backward has run.
void drop_failed_graph();

}  // namespace torchlore::memory
