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

  bool is_secure() const { return secure_; }

  /// The stream of a part: the same each time it is asked for. @param part below 2^31.
  std::unique_ptr<RandomWords> words(int64_t part) const;
  /// A stream of its own for what number `index` of the part needs besides, now and then.
  /// @param index below 2^24.
  std::unique_ptr<RandomWords> more_words(int64_t part, int64_t index) const;
  /// The same stream as `words` of a source that is not secure.
  kernels::PhiloxCounter philox(int64_t part) const;

 private:
  bool secure_;
  ChaChaKey key_{};
  kernels::PhiloxCounter counter_;
};

}  // namespace torchlore::privacy
