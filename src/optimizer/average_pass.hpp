#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

/// The passes of `WeightAverage` over pairs of a model's tensor and its average.
namespace torchlore::average {

struct Pair {
  std::string name;
  at::Tensor live;     ///< the model's
  at::Tensor average;  ///< same shape and device; wider if `live` has 16 bits
};

using Pairs = std::vector<Pair>;

/// Whether the two are memory of one order, dtype and device that the host can walk in step.
bool same_host_memory(const Pair& pair);

/// average = live.
void copy_(const Pairs& pairs);
/// average += weight · (live - average); integers are copied.
void lerp_(const Pairs& pairs, double weight);
/// Exchanges the bytes of pairs of `same_host_memory`.
void swap_bytes(const Pairs& pairs);

}  // namespace torchlore::average
