#include "exp_interval.hpp"

#include <algorithm>

namespace torchlore::privacy {
namespace {

/// exp(-z) for z in [z.lower, z.upper], z <= 2^-5: the series in interval arithmetic. What is left out
/// is smaller than the first term of it, for the terms fall and alternate.
FixedInterval exp_small(const FixedInterval& z, size_t limbs) {
  FixedInterval sum{FixedPoint(limbs, 1), FixedPoint(limbs, 1)};
  FixedInterval term = sum;
  for (uint64_t k = 1;; ++k) {
    term.lower = FixedPoint::multiply(term.lower, z.lower, false).divide(k, false);
    term.upper = FixedPoint::multiply(term.upper, z.upper, true).divide(k, true);
    if (term.lower.is_zero()) break;
    if (k % 2 == 1) {
      sum.lower -= term.upper;
      sum.upper -= term.lower;
    } else {
      sum.lower += term.lower;
      sum.upper += term.upper;
    }
  }
  sum.lower -= term.upper;
  sum.upper += term.upper;
  return sum;
}

}  // namespace

FixedPoint FixedPoint::ratio(uint128 numerator, uint128 denominator, size_t limbs) {
  FixedPoint result(limbs);
  for (size_t i = 0; i < limbs; ++i) {
    uint64_t limb = 0;
    for (int bit = 0; bit < 64; ++bit) {
      numerator <<= 1;
      limb <<= 1;
      if (numerator >= denominator) {
        numerator -= denominator;
        limb |= 1;
      }
    }
    result.set_limb(i, limb);
  }
  return result;
}

FixedPoint& FixedPoint::operator+=(const FixedPoint& other) {
  uint128 carry = 0;
  for (size_t i = 0; i < limbs_.size(); ++i) {
    carry += uint128{limbs_[i]} + other.limbs_[i];
    limbs_[i] = static_cast<uint64_t>(carry);
    carry >>= 64;
  }
  return *this;
}

FixedPoint& FixedPoint::operator-=(const FixedPoint& other) {
  if (*this <= other) {
    std::fill(limbs_.begin(), limbs_.end(), uint64_t{0});
    return *this;
  }
  uint64_t borrow = 0;
  for (size_t i = 0; i < limbs_.size(); ++i) {
    const uint128 difference = uint128{limbs_[i]} - other.limbs_[i] - borrow;
    limbs_[i] = static_cast<uint64_t>(difference);
    borrow = (difference >> 64) != 0 ? 1 : 0;
  }
  return *this;
}

FixedPoint& FixedPoint::step_up() {
  for (auto& limb : limbs_) {
    if (++limb != 0) break;
  }
  return *this;
}

FixedPoint& FixedPoint::operator*=(uint64_t factor) {
  uint128 carry = 0;
  for (auto& limb : limbs_) {
    carry += uint128{limb} * factor;
    limb = static_cast<uint64_t>(carry);
    carry >>= 64;
  }
  return *this;
}

FixedPoint& FixedPoint::divide(uint64_t divisor, bool up) {
  uint128 rest = 0;
  for (auto limb = limbs_.rbegin(); limb != limbs_.rend(); ++limb) {
    rest = rest << 64 | *limb;
    *limb = static_cast<uint64_t>(rest / divisor);
    rest %= divisor;
  }
  if (up && rest != 0) step_up();
  return *this;
}

FixedPoint FixedPoint::multiply(const FixedPoint& a, const FixedPoint& b, bool up) {
  const size_t size = a.limbs_.size(), behind = size - 1;
  std::vector<uint64_t> product(2 * size);
  for (size_t i = 0; i < size; ++i) {
    uint128 carry = 0;
    for (size_t j = 0; j < size; ++j) {
      carry += uint128{a.limbs_[i]} * b.limbs_[j] + product[i + j];
      product[i + j] = static_cast<uint64_t>(carry);
      carry >>= 64;
    }
    product[i + size] = static_cast<uint64_t>(carry);
  }
  FixedPoint result = a;
  std::copy_n(product.begin() + static_cast<ptrdiff_t>(behind), size, result.limbs_.begin());
  const auto dropped = product.begin() + static_cast<ptrdiff_t>(behind);
  if (up && std::any_of(product.begin(), dropped, [](uint64_t limb) { return limb != 0; })) {
    result.step_up();
  }
  return result;
}

bool FixedPoint::operator<=(const FixedPoint& other) const {
  return !std::lexicographical_compare(other.limbs_.rbegin(), other.limbs_.rend(), limbs_.rbegin(),
                                       limbs_.rend());
}

bool FixedPoint::is_zero() const {
  return std::all_of(limbs_.begin(), limbs_.end(), [](uint64_t limb) { return limb == 0; });
}

FixedInterval exp_interval(uint128 numerator, uint128 denominator, size_t limbs) {
  // Halved until it is at most 2^-5, and squared as often afterwards.
  const int halvings = std::max(0, bit_width(numerator) - bit_width(denominator) + 6);
  const auto z = FixedPoint::ratio(numerator, denominator << halvings, limbs);
  FixedInterval result = exp_small({z, FixedPoint(z).step_up()}, limbs);
  for (int i = 0; i < halvings; ++i) {
    result.lower = FixedPoint::multiply(result.lower, result.lower, false);
    result.upper = FixedPoint::multiply(result.upper, result.upper, true);
  }
  return result;
}

}  // namespace torchlore::privacy
