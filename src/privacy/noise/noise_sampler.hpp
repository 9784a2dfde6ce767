#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "noise_draw.hpp"
#include "random_bits.hpp"

namespace torchlore::privacy {

/// Takes numbers as they are drawn, a thousand at most at once. They are wiped when it returns.
using NoiseSink = std::function<void(std::span<const int64_t>)>;

/// Draws whole numbers, all from one distribution. They are handed on while they are in the cache, and
/// never make a vector as long as a gradient.
class NoiseSampler {
 public:
  NoiseSampler() = default;
  virtual ~NoiseSampler() = default;
  NoiseSampler(const NoiseSampler&) = delete;
  NoiseSampler& operator=(const NoiseSampler&) = delete;

  /// Draws so many numbers from a part of the draw, in order. @param part as of `NoiseDraw::words`.
  virtual void draw(int64_t count, const NoiseDraw& draw, int64_t part,
                    const NoiseSink& sink) const = 0;
  /// The same into memory.
  void fill(std::span<int64_t> numbers, const NoiseDraw& draw, int64_t part) const;
};

/// `draw` of a sampler that takes its numbers from a stream of bits, one by one.
void draw_one_by_one(int64_t count, const NoiseDraw& draw, int64_t part, const NoiseSink& sink,
                     const std::function<int64_t(RandomBits&)>& one);

}  // namespace torchlore::privacy
