#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "torchlore/core/state_dict.hpp"
#include "torchlore/privacy/noise_source.hpp"

namespace torchlore {

/// Options of `DistributedNoise`: public, and the same for all clients and the server.
struct DistributedNoiseOptions {
  /// The L2 norm that each update is clipped to, chosen without the updates. In [1e-100, 1e100].
  double clip_norm = 0;
  /// Standard deviation of the noise of all clients together, over the norm. Above 0.
  double noise_multiplier = 0;
  int64_t clients = 0;  ///< how many add noise in a round, 1 or more
  int64_t bits = 32;    ///< whole numbers modulo 2^bits are sent; 8 to 48
};

/// Private means without a server that sees single updates: each client clips, rounds to whole numbers
/// and adds its own share of discrete Gaussian noise; only the sum modulo 2^bits is ever needed, as
/// secure aggregation gives it. (The secure aggregation itself is not here.)
///
/// ```cpp
/// const torchlore::DistributedNoise shares(model_state, {
///     .clip_norm = 0.5, .noise_multiplier = 1.0, .clients = 100});
/// at::Tensor sent = shares.encode(update);          // on the client
/// shares.add_(sum, sent);                           // in place of secure aggregation
/// auto mean = shares.decode_mean(sum);              // on the server
/// ```
/// The step of rounding is as fine as the bits allow without a sum leaving their range: the largest sum of
/// updates, and 12 standard deviations of the noise (beyond: 1e-32 for each element; its value is wrong then). What rounding adds to a client's norm is
/// paid for by more noise. No rotation is applied: that would save bits, not privacy.
/// Source: Kairouz, Liu, Steinke (2021), arXiv:2102.06387.
class DistributedNoise {
 public:
  /// @param like names, shapes and floating dtypes of the model's tensors.
  /// @throws c10::ValueError for an option out of range, or if the bits are too few: for the range, or for
  ///         shares of noise of 4 steps (below that a sum of discrete Gaussian numbers is not one).
  ///         c10::TypeError for a tensor that is not floating.
  DistributedNoise(const StateDict& like, DistributedNoiseOptions options);

  /// What a client sends. @param update as the model's tensors.
  /// @return int64 [elements], each in [0, 2^bits), on the CPU.
  /// @throws c10::ValueError if names or shapes differ, or if the norm is not finite.
  at::Tensor encode(const StateDict& update, const NoiseSource& source = {}) const;

  /// An empty sum: zeros, int64 [elements].
  at::Tensor zero() const;
  /// Adds modulo 2^bits. @throws c10::ValueError unless both are what `encode` gives; the sum is
  /// unchanged then.
  void add_(const at::Tensor& sum, const at::Tensor& sent) const;

  /// The noisy sum over `clients`, as the model's tensors. @throws c10::ValueError as `add_`.
  StateDict decode_mean(const at::Tensor& sum) const;

  /// What to account with if so many clients' noise is in the sum: noise_multiplier × sqrt(answered /
  /// clients). Count only clients who are trusted to have added theirs. Neighbours differ by one client
  /// whose update is zero in one of them.
  /// @param answered 1 or more; above `clients` counts as that.
  double noise_multiplier(int64_t answered) const;

  /// The distance of two whole numbers, in the update's unit.
  double step() const { return step_; }

 private:
  void check_message(const at::Tensor& message) const;

  StateDict like_;
  DistributedNoiseOptions options_;
  int64_t elements_ = 0;
  double step_ = 0;
  double share_ = 0;  // standard deviation of one client's noise, in steps
};

}  // namespace torchlore
