#include "torchlore/privacy/noise_source.hpp"

#include <openssl/crypto.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "noise_draw.hpp"
#include "torchlore/core/error.hpp"

namespace torchlore {

struct NoiseSource::Position {
  std::mutex mutex;
  uint64_t seed = 0;
  int64_t calls = 0;
};

namespace {

// The last 256 streams of a seed belong to the library; permutations have the last one.
constexpr uint32_t kNoiseStream = 0xFFFF'FFFE;
constexpr int64_t kMostCalls = int64_t{1} << 32;

int64_t checked_calls(int64_t calls) {
  TORCH_CHECK_VALUE(calls >= 0 && calls <= kMostCalls,
                    "the state of a NoiseSource counts 0 to 2^32 calls, but \"calls\" is ", calls);
  return calls;
}

}  // namespace

NoiseSource NoiseSource::fast_not_secure(uint64_t seed) {
  NoiseSource source;
  source.not_secure_ = std::make_shared<Position>();
  source.not_secure_->seed = seed;
  return source;
}

StateDict NoiseSource::state_dict() const {
  if (is_secure()) return {{"secure", state_value(int64_t{1})}};
  const std::lock_guard lock(not_secure_->mutex);
  return {{"secure", state_value(int64_t{0})},
          {"seed", state_value(std::bit_cast<int64_t>(not_secure_->seed))},
          {"calls", state_value(not_secure_->calls)}};
}

void NoiseSource::load_state_dict(const StateDict& state) {
  const bool secure = state_int(state, "secure") != 0;
  TORCH_CHECK_VALUE(secure == is_secure(), "the saved run drew noise from a ",
                    secure ? "secure" : "not secure", " NoiseSource, and this one is ",
                    is_secure() ? "secure" : "not secure", "; go on with the same kind");
  if (secure) return;
  const auto seed = std::bit_cast<uint64_t>(state_int(state, "seed"));
  const int64_t calls = checked_calls(state_int(state, "calls"));
  const std::lock_guard lock(not_secure_->mutex);
  not_secure_->seed = seed;
  not_secure_->calls = calls;
}

namespace privacy {

NoiseDraw::NoiseDraw(const NoiseSource& source) : secure_(source.is_secure()) {
  if (secure_) {
    TORCH_CHECK(::getentropy(key_.data(), key_.size()) == 0,
                "the operating system gives no random key: ", std::strerror(errno));
    return;
  }
  auto& position = *source.not_secure_;
  const std::lock_guard lock(position.mutex);
  TORCH_CHECK_VALUE(position.calls < kMostCalls, "a NoiseSource of one seed draws at most ",
                    kMostCalls, " times; take another seed");
  counter_ = {
      .index = 0,
      .step = static_cast<uint32_t>(position.calls++),
      .stream = kNoiseStream,
      .key = {static_cast<uint32_t>(position.seed), static_cast<uint32_t>(position.seed >> 32)}};
}

NoiseDraw::~NoiseDraw() { OPENSSL_cleanse(key_.data(), key_.size()); }

kernels::PhiloxCounter NoiseDraw::philox(int64_t part) const {
  auto counter = counter_;
  counter.index = static_cast<uint64_t>(part) << 32;
  return counter;
}

std::unique_ptr<RandomWords> NoiseDraw::words(int64_t part) const {
  if (secure_) return std::make_unique<ChaChaWords>(key_, static_cast<uint64_t>(part));
  return std::make_unique<PhiloxWords>(philox(part));
}

std::unique_ptr<RandomWords> NoiseDraw::more_words(int64_t part, int64_t index) const {
  if (secure_) {
    return std::make_unique<ChaChaWords>(key_, static_cast<uint64_t>(part),
                                         static_cast<uint32_t>(index) + 1);
  }
  auto counter = philox(part);
  counter.index |= uint64_t{1} << 63 | static_cast<uint64_t>(index) << 8;
  return std::make_unique<PhiloxWords>(counter);
}

}  // namespace privacy
}  // namespace torchlore
