#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <functional>
#include <string>
#include <vector>

#include "faulty_allocator.hpp"
#include "torchlore/memory/memory_meter.hpp"

namespace torchlore::testing {

/// What became of a piece of work that met one failed allocation, at each of its allocations in turn.
struct OutOfMemoryOutcome {
  int64_t allocations = 0;   ///< of one undisturbed run: so many faults were injected
  int64_t not_thrown = 0;    ///< faults after which the work went on as if nothing had been
  int64_t other_type = 0;    ///< faults that arrived as something else than OutOfMemoryError
  int64_t leaked_bytes = 0;  ///< left behind by all faults together
  int64_t next_unlike = 0;   ///< faults after which the next, undisturbed run had another result
  std::string first_other = {};  ///< the text of the first error of another type
};

/// Runs `work` with a failure at each allocation. `work` returns tensors to compare, and begins from
/// the same state each time; `clean` frees what an unfinished run leaves to the user (gradients).
inline OutOfMemoryOutcome fail_at_every_allocation(
    const std::function<std::vector<at::Tensor>()>& work, const std::function<void()>& clean) {
  const MemoryMeter meter;  // first: it wants to stand below the faulty allocator
  auto& allocator = FaultyAllocator::install();
  const auto expected = work();  // also fills the caches of LibTorch and oneDNN
  clean();
  allocator.never_fail();
  work();
  OutOfMemoryOutcome outcome{.allocations = allocator.count()};
  const auto equal = [&](const std::vector<at::Tensor>& actual) {
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!actual[i].equal(expected[i])) return false;
    }
    return true;
  };
  for (int64_t i = 0; i < outcome.allocations; ++i) {
    clean();
    const Bytes before = meter.current();
    allocator.fail_at(i);
    try {
      work();
      ++outcome.not_thrown;
    } catch (const c10::OutOfMemoryError&) {
    } catch (const std::exception& error) {
      if (outcome.other_type++ == 0) outcome.first_other = error.what();
    }
    allocator.never_fail();
    if (!equal(work())) ++outcome.next_unlike;
    // Only now: autograd's engine holds a failed pass's pending gradients until the next one.
    clean();
    outcome.leaked_bytes += (meter.current() - before).count();
  }
  clean();
  return outcome;
}

}  // namespace torchlore::testing
