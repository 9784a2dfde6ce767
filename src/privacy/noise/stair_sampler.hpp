#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "noise_kernels.hpp"
#include "noise_sampler.hpp"
#include "rejection_sampler.hpp"

namespace torchlore::privacy {

/// Discrete Gaussian numbers, exact and many at once. docs/discrete_noise.md has the argument.
///
/// A proposal is a cell of width w = 2^k, w in (sigma / 8, sigma / 4], drawn with the exactly known
/// probability weight / 2^39, a uniform place in it and a sign. It is kept with probability
/// target × exp(-y^2 / (2 sigma^2)) / weight. The vector loop decides where its rounding cannot matter,
/// and `decide` the rest, with as many random bits and digits as it takes.
class StairSampler final : public NoiseSampler {
 public:
  static constexpr double kLeast = 4;
  static constexpr double kMost = 0x1.1p43;

  /// @param sigma in [kLeast, kMost].
  explicit StairSampler(const Scale& sigma);

  /// @param count below 2^23.
  void draw(int64_t count, const NoiseDraw& draw, int64_t part,
            const NoiseSink& sink) const override;

  const kernels::StairLookup& lookup() const { return lookup_; }
  /// Of cell j; all sum to 2^39. The last one is the whole tail.
  const std::array<uint64_t, kernels::kStairCells>& weights() const { return weights_; }
  uint64_t target() const { return target_; }

  /// The exact decision on a proposal. @param bits of its own.
  /// @param limbs 64-bit words of precision to begin with.
  bool decide(const kernels::StairProposal& proposal, RandomBits& bits, int64_t* y,
              size_t limbs = 2) const;

 private:
  void choose_weights();
  void make_alias();
  bool keep(uint64_t y, uint64_t weight, int doublings, uint16_t coin, RandomBits& bits,
            size_t limbs) const;

  Scale sigma_;
  int log2_width_;
  std::array<uint64_t, kernels::kStairCells> weights_{};
  uint64_t target_ = 0;
  kernels::StairLookup lookup_;
};

/// Discrete Gaussian numbers by the quickest exact way.
class GaussianSampler final : public NoiseSampler {
 public:
  /// @param sigma of any size that Scale knows. @param count how many numbers will be drawn in all.
  GaussianSampler(const Scale& sigma, int64_t count);
  void draw(int64_t count, const NoiseDraw& draw, int64_t part,
            const NoiseSink& sink) const override;

 private:
  Scale sigma_;
  std::unique_ptr<const StairSampler> stair_;
};

/// Discrete Laplace numbers.
class LaplaceSampler final : public NoiseSampler {
 public:
  explicit LaplaceSampler(const Scale& scale) : scale_(scale) {}
  void draw(int64_t count, const NoiseDraw& draw, int64_t part,
            const NoiseSink& sink) const override;

 private:
  Scale scale_;
};

}  // namespace torchlore::privacy
