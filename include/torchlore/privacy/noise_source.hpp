#pragma once

#include <cstdint>
#include <memory>

#include "torchlore/core/state_dict.hpp"

namespace torchlore {

namespace privacy {
class NoiseDraw;
}

/// Where the random bits of privacy noise come from. A handle: copies are the same source.
///
/// ```cpp
/// torchlore::NoiseSource source;                                            // secure
/// auto experiment = torchlore::NoiseSource::fast_not_secure(/*seed=*/42);   // repeatable
/// ```
/// Threads may share a source. No two draws ever get the same bits.
class NoiseSource {
 public:
  /// The same as `secure()`.
  NoiseSource() = default;

  /// ChaCha20 (OpenSSL's libcrypto) under a key that the operating system gives anew for every call
  /// that draws, and that is wiped when the call ends. Nothing is kept between calls: there is no
  /// state to steal or to save, and processes after a fork, and copies of a virtual machine, draw
  /// different noise. Nobody can repeat it.
  static NoiseSource secure() { return {}; }

  /// Philox under a seed: repeatable, quick, and **no protection** against anybody who knows or
  /// guesses the seed, or has seen enough of the noise. For experiments and tests.
  /// @param seed any value. Two sources of the same seed draw the same noise.
  static NoiseSource fast_not_secure(uint64_t seed);

  /// Whether the noise may protect anything.
  bool is_secure() const { return not_secure_ == nullptr; }

  /// What a run saves. Of a secure source: only that it is one; its noise must not be repeated, so
  /// nothing that could repeat it is ever written. Of the other: the seed and the calls so far.
  StateDict state_dict() const;

  /// Goes on where `state_dict` was taken; all copies of this source do.
  /// @throws c10::ValueError if one is secure and the other is not, or if the state is damaged;
  ///         nothing is changed then.
  void load_state_dict(const StateDict& state);

 private:
  friend class privacy::NoiseDraw;
  struct Position;
  std::shared_ptr<Position> not_secure_;
};

}  // namespace torchlore
