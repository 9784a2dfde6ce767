#pragma once

#include <cstdint>
#include <memory>

#include "random_words.hpp"
#include "torchlore/privacy/noise_source.hpp"

namespace torchlore::privacy {

/// The random bits of one call that draws: as many independent streams as it has parts. Parts make
/// the result independent of threads.
class NoiseDraw {
 public:
  /// Takes a key from the operating system, or the next position of a seeded source.
  /// @throws c10::Error if the system gives none.
  explicit NoiseDraw(const NoiseSource& source);
  ~NoiseDraw();  ///< wipes the key
  NoiseDraw(const NoiseDraw&) = delete;
  NoiseDraw& operator=(const NoiseDraw&) = delete;

  bool is_secure() const { return stream_ == nullptr; }

  /// The stream of a part: the same each time it is asked for. @param part below 2^31.
  std::unique_ptr<RandomWords> words(int64_t part) const {
    return make(static_cast<uint64_t>(part));
  }
  /// A second stream of the same part, for whatever needs some more bits now and then.
  std::unique_ptr<RandomWords> more_words(int64_t part) const {
    return make(static_cast<uint64_t>(part) | uint64_t{1} << 31);
  }

 private:
  std::unique_ptr<RandomWords> make(uint64_t part) const;

  ChaChaKey key_{};
  std::unique_ptr<const PhiloxStream> stream_;
};

}  // namespace torchlore::privacy
