#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "torchlore/core/error.hpp"

/// Counter-based random numbers: each is a pure function of what it belongs to (seed, step, stream,
/// element), so results do not depend on thread count or order, and need no state to be resumed.
namespace torchlore {

/// Philox4x32 with 10 rounds: maps a 128-bit counter to 128 random bits under a 64-bit key.
///
/// Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", SC
/// '11.
constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;  // the golden ratio, and the square root of 3 less 1: Weyl sequences
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// The random numbers of one thing at one step: element i has number i, at any time and in any
/// order.
///
/// The seed is Philox's key; block, step and stream are its counter, so two streams never share a
/// block. float32 numbers take half a block or less, which `uniform` and `normal` share out.
class PhiloxStream {
 public:
  /// @param seed   of the whole run; any value.
  /// @param step   of the run, or an epoch: [0, 2^32).
  /// @param stream what the numbers belong to, such as the index of a parameter: [0, 2^32); the
  ///               last 256 are for the library's own use.
  /// @throws c10::ValueError if step or stream is out of range.
  explicit PhiloxStream(uint64_t seed, int64_t step = 0, int64_t stream = 0)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        step_(checked("step", step)),
        stream_(checked("stream", stream)) {}

  /// 128 random bits.
  std::array<uint32_t, 4> block(uint64_t index) const {
    return philox4x32(
        {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), step_, stream_}, key_);
  }

  /// Uniform in [0, 1): a multiple of 2^-24 (float) or 2^-53 (double).
  template <std::floating_point T>
  T uniform(uint64_t element) const {
    const auto words = block(element / kPerBlock<T>);
    return uniform_of<T>(words, element % kPerBlock<T>);
  }

  /// Standard normal, by the Box–Muller transform in float64, rounded once to T. The magnitude is
  /// at most 6.7 (float) or 8.6 (double).
  template <std::floating_point T>
  T normal(uint64_t element) const {
    const auto words = block(element / kPerBlock<T>);
    return normal_of<T>(words, element % kPerBlock<T>);
  }

  /// How many numbers of type T one block gives: 4 float, 2 double.
  template <std::floating_point T>
  static constexpr uint64_t kPerBlock = 16 / sizeof(T);

  /// Number `place` of a block, as `uniform` gives it.
  template <std::floating_point T>
  static T uniform_of(const std::array<uint32_t, 4>& words, uint64_t place) {
    if constexpr (sizeof(T) == 4) {
      return static_cast<T>(words[place] >> 8) * T(0x1p-24);
    } else {
      return static_cast<T>(wide(words, place) >> 11) * T(0x1p-53);
    }
  }

  /// Number `place` of a block, as `normal` gives it.
  template <std::floating_point T>
  static T normal_of(const std::array<uint32_t, 4>& words, uint64_t place) {
    // Two numbers share a radius and an angle. Both uniforms lie in (0, 1): the logarithm is
    // finite.
    double u = 0, v = 0;
    if constexpr (sizeof(T) == 4) {
      const uint64_t pair = place & ~uint64_t{1};
      u = (words[pair] + 0.5) * 0x1p-32;
      v = (words[pair + 1] + 0.5) * 0x1p-32;
    } else {
      u = (static_cast<double>(wide(words, 0) >> 12) + 0.5) * 0x1p-52;
      v = (static_cast<double>(wide(words, 1) >> 12) + 0.5) * 0x1p-52;
    }
    const double radius = std::sqrt(-2 * std::log(u));
    const double angle = 2 * std::numbers::pi * v;
    return static_cast<T>(radius * (place % 2 == 0 ? std::cos(angle) : std::sin(angle)));
  }

 private:
  static uint32_t checked(const char* name, int64_t value) {
    TORCH_CHECK_VALUE(value >= 0 && value <= std::numeric_limits<uint32_t>::max(), name,
                      " must lie in [0, 2^32), but is ", value);
    return static_cast<uint32_t>(value);
  }

  static uint64_t wide(const std::array<uint32_t, 4>& words, uint64_t place) {
    return uint64_t{words[2 * place + 1]} << 32 | words[2 * place];
  }

  std::array<uint32_t, 2> key_;
  uint32_t step_;
  uint32_t stream_;
};

/// The numbers of a stream one after the other, as a uniform random bit generator of the standard
/// library's kind.
class PhiloxEngine {
 public:
  using result_type = uint64_t;  ///< of `operator()`

  /// An engine that starts at number `first` of `stream`, of 64 bits each.
  explicit PhiloxEngine(const PhiloxStream& stream, uint64_t first = 0)
      : stream_(stream), next_(first - first % 2) {
    if (first % 2 != 0) (*this)();
  }

  /// The smallest number that `operator()` gives.
  static constexpr uint64_t min() { return 0; }
  /// The largest number that `operator()` gives.
  static constexpr uint64_t max() { return std::numeric_limits<uint64_t>::max(); }

  /// 64 random bits.
  uint64_t operator()() {
    if (next_ % 2 == 0) words_ = stream_.block(next_ / 2);
    const uint64_t place = 2 * (next_++ % 2);
    return uint64_t{words_[place + 1]} << 32 | words_[place];
  }

  /// A whole number in [0, bound), each with exactly the same probability.
  /// @throws c10::ValueError if bound is 0.
  /// Source: Lemire (2019), arXiv:1805.10941, algorithm 5.
  uint64_t below(uint64_t bound);

 private:
  PhiloxStream stream_;
  uint64_t next_;
  std::array<uint32_t, 4> words_{};
};

/// A permutation of 0 … n-1, each of the n! with the same probability (Fisher–Yates with unbiased
/// draws): a pure function of (seed, epoch, n).
/// @param seed  of the whole run; any value.
/// @param epoch [0, 2^32).
/// @param n     how many numbers; 0 gives an empty permutation.
/// @throws c10::ValueError if n is negative or epoch is out of range.
/// @note O(n).
std::vector<int64_t> philox_permutation(uint64_t seed, int64_t epoch, int64_t n);

/// Fills a tensor with uniform numbers in [low, high); element i in row-major order gets number
/// `first + i` of the stream, whatever the strides and the number of threads. A low-precision
/// dtype, or a wide range, may round up to `high`.
/// @param tensor float16, bfloat16, float32 (all from the same float32 numbers) or float64. Off the
///               CPU, the host fills a copy that is then moved: the numbers are the same
///               everywhere.
/// @param stream where the numbers come from.
/// @param low    the smallest number.
/// @param high   the upper bound; low or above.
/// @param first  number of the first element: parts filled on their own equal the whole.
/// @return the tensor.
/// @throws c10::TypeError for other dtypes; c10::ValueError if a bound is not finite, high < low,
///         or first is negative or so large that the last index overflows.
/// @note O(elements), on LibTorch's threads; host syncs: 0. Not recorded by autograd.
at::Tensor philox_uniform_(at::Tensor tensor, const PhiloxStream& stream, double low = 0,
                           double high = 1, int64_t first = 0);

/// Fills a tensor with normal numbers; otherwise as `philox_uniform_`.
/// @param tensor as there.
/// @param stream as there.
/// @param mean   of the numbers.
/// @param stddev of the numbers; 0 or above.
/// @param first  as there.
/// @return the tensor.
/// @throws c10::TypeError for other dtypes; c10::ValueError if mean is not finite, stddev is
///         negative or not finite, or first is out of range.
at::Tensor philox_normal_(at::Tensor tensor, const PhiloxStream& stream, double mean = 0,
                          double stddev = 1, int64_t first = 0);

}  // namespace torchlore
