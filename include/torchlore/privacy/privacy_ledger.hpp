#pragma once

#include <cstdint>
#include <vector>

namespace torchlore {

/// How the examples of a step are drawn, and with it which data sets are neighbours, that is, what the
/// sensitivity is the sensitivity to. An accountant accepts only the kinds that it has a theorem for.
enum class Sampling : uint8_t {
  /// Each example by itself with the same probability, so that the size of a batch is random
  /// (`PoissonSampler`). Neighbours differ by one example more or less: the sum of vectors of norm 1 or
  /// less has sensitivity 1.
  poisson,
  /// A batch of fixed size without replacement (`FixedSizeSampler`). Neighbours differ by one example
  /// replaced: the sum of vectors of norm 1 or less has sensitivity 2.
  fixed_size,
};

/// The noise that is added to what a step releases.
enum class Noise : uint8_t {
  gaussian,  ///< standard deviation = noise_multiplier × L2 sensitivity
  laplace,   ///< scale = noise_multiplier × L1 sensitivity
};

/// A release of noisy statistics of a random part of the data, and how often it happened.
struct PrivacyEvent {
  double noise_multiplier = 0;            ///< above 0, in units of the sensitivity
  double sample_rate = 1;                 ///< probability of an example to be in it, in (0, 1]
  int64_t steps = 1;                      ///< how often, 1 or more
  Noise noise = Noise::gaussian;          ///< see Noise
  Sampling sampling = Sampling::poisson;  ///< with sample_rate 1: which neighbours are meant
};

/// What was released so far, in any order and with any settings. Accountants turn it into ε and δ:
/// `rdp_epsilon`, `prv_epsilon`, `pld_epsilon`.
///
/// Plain data: to save it, save the events.
class PrivacyLedger {
 public:
  PrivacyLedger() = default;
  /// @throws c10::ValueError as `add`.
  explicit PrivacyLedger(const std::vector<PrivacyEvent>& events);

  /// Notes a release. Equal ones are counted together.
  /// @throws c10::ValueError if a value lies outside its range, or if the other events are sampled in
  ///         the other way: there is no accounting for both, whose neighbours are not the same.
  PrivacyLedger& add(const PrivacyEvent& event);

  /// All of it; no two events differ in nothing but their steps.
  const std::vector<PrivacyEvent>& events() const { return events_; }
  /// Whether nothing was released.
  bool empty() const { return events_.empty(); }

 private:
  std::vector<PrivacyEvent> events_;
};

}  // namespace torchlore
