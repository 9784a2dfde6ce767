#include "free_memory.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include "../intercept/autograd_node.hpp"
#include "torchlore/core/device.hpp"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace torchlore::memory {

void drop_failed_graph() {
  try {
    const at::AutoGradMode grad_mode(true);
    const auto result = at::zeros({}).set_requires_grad(true).clone();
    // The queue is sorted by this number, the highest first: this backward ends only when all
    // that is left of the failed one has been looked at, found to belong to none, and dropped.
    result.grad_fn()->set_sequence_nr(0);
    result.backward();
  } catch (const std::exception&) {
    // Not even that much memory: the next backward does the same.
  }
}

void free_after_failure() {
  drop_failed_graph();
  const auto device = default_device();
  // A device that has not allocated anything is not woken up.
  if (device_memory(device).has_value()) {
    synchronize(device);
    empty_cache(device);
  }
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

}  // namespace torchlore::memory
