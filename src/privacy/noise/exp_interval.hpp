#pragma once

#include <cstdint>
#include <vector>

#include "random_bits.hpp"

namespace torchlore::privacy {

/// A number in [0, 2^64) with 64 × limbs bits behind the point, and whole-number arithmetic that rounds
/// the way it is told.
class FixedPoint {
 public:
  explicit FixedPoint(size_t limbs, uint64_t whole = 0) : limbs_(limbs) { limbs_.push_back(whole); }

  /// numerator / denominator below 1, rounded down. @param denominator below 2^127.
  static FixedPoint ratio(uint128 numerator, uint128 denominator, size_t limbs);

  /// Limb 0 stands first behind the point.
  void set_limb(size_t i, uint64_t value) { limbs_[limbs_.size() - 2 - i] = value; }
  uint64_t limb(size_t i) const { return limbs_[limbs_.size() - 2 - i]; }
  uint64_t whole() const { return limbs_.back(); }

  FixedPoint& operator+=(const FixedPoint& other);
  /// At most down to 0.
  FixedPoint& operator-=(const FixedPoint& other);
  /// Adds 2^-(64 limbs).
  FixedPoint& step_up();
  /// Exact, while below 2^64.
  FixedPoint& operator*=(uint64_t factor);
  FixedPoint& divide(uint64_t divisor, bool up);

  static FixedPoint multiply(const FixedPoint& a, const FixedPoint& b, bool up);
  bool operator<=(const FixedPoint& other) const;
  bool is_zero() const;

 private:
  std::vector<uint64_t> limbs_;  // the lowest first, the whole part last
};

struct FixedInterval {
  FixedPoint lower, upper;
};

/// Bounds of exp(-numerator / denominator), about 2^-(64 limbs - 10) apart.
/// @param numerator below 2^110. @param denominator in [1, 2^110).
FixedInterval exp_interval(uint128 numerator, uint128 denominator, size_t limbs);

}  // namespace torchlore::privacy
