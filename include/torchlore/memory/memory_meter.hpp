#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "torchlore/core/bytes.hpp"

namespace torchlore {

/// Measures the memory that tensors take while it lives: now, and at the highest point.
///
/// ```cpp
/// torchlore::MemoryMeter meter;
/// loss = model->forward(x).mean();
/// loss.backward();
/// std::cout << meter.peak() << '\n';              // 512 MiB
/// ```
/// Meters may nest and overlap, on any threads; each has a peak of its own. All count what the whole
/// process allocates.
///
/// On the CPU, the first meter puts a counting allocator around LibTorch's, for the whole process and
/// for good; LibTorch still allocates. Counted is what was allocated from then on, in the sizes that
/// the system's malloc really gave, which are up to a page above those asked for. On accelerators the
/// figures are those of the device's caching allocator, whose own peak starts anew with each meter.
/// @note Costs about 12 ns for each tensor allocated, 26 ns where two threads allocate at once, on
///       the machine of docs/claims.md. Neither an allocation nor a release takes a lock. Host syncs: 0.
class MemoryMeter {
 public:
  /// Starts measuring.
  /// @param device the CPU, or an accelerator.
  /// @throws c10::ValueError if the machine has no such device; c10::NotImplementedError if the
  ///         accelerator does not count its memory, or if the process allocates CPU memory by an
  ///         allocator that is not LibTorch's own.
  explicit MemoryMeter(c10::Device device = c10::Device(c10::kCPU));
  ~MemoryMeter();

  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter(MemoryMeter&&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;
  MemoryMeter& operator=(MemoryMeter&&) = delete;

  /// What is in use now, above what was in use at the start; negative if more was freed since.
  Bytes current() const;
  /// The most that was in use at once since the start or `reset_peak`, above what was in use at the
  /// start.
  Bytes peak() const;
  /// Counts the peak anew from what is in use now.
  void reset_peak();

 private:
  struct Count;
  std::unique_ptr<Count> count_;
};

}  // namespace torchlore
