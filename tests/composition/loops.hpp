#pragma once

#include <string>
#include <vector>

#include "torchlore/step.hpp"

/// The training loops that a stage is set beside.
namespace torchlore::testing {

/// A scale of 2^10 keeps the small models' float16 gradients clear of both ends.
inline Precision fp16() {
  return Precision::fp16({.init_scale = 1024.0, .growth_interval = 1'000});
}

/// A loop by its name.
struct Loop {
  std::string name;
  TrainingStepOptions options;
};

/// Every stage of precision, accumulation and clipping alone, and all of them.
inline std::vector<Loop> loops() {
  return {
      {"plain", {}},
      {"autocast", {.precision = Precision::bf16()}},
      {"scaler", {.precision = fp16()}},
      {"accumulation", {.accumulate = Accumulate::batches(4)}},
      {"clipping", {.clip = clip::norm(0.2)}},
      {"everything",
       {.precision = fp16(), .accumulate = Accumulate::batches(4), .clip = clip::norm(0.2)}},
  };
}

}  // namespace torchlore::testing
