#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "torchlore/core/philox.hpp"

struct evp_cipher_ctx_st;  // OpenSSL's EVP_CIPHER_CTX

namespace torchlore::privacy {

/// A stream of independent uniform 32-bit words.
class RandomWords {
 public:
  RandomWords() = default;
  virtual ~RandomWords() = default;
  RandomWords(const RandomWords&) = delete;
  RandomWords& operator=(const RandomWords&) = delete;

  /// The next words of the stream.
  virtual void fill(std::span<uint32_t> words) = 0;
};

using ChaChaKey = std::array<uint8_t, 32>;

/// The key stream of ChaCha20 (RFC 8439) under a key; `part` takes the last 8 bytes of the nonce.
/// One stream is at most 2^32 blocks of 64 bytes.
class ChaChaWords final : public RandomWords {
 public:
  ChaChaWords(const ChaChaKey& key, uint64_t part);
  void fill(std::span<uint32_t> words) override;

 private:
  struct Free {
    void operator()(evp_cipher_ctx_st* context) const;
  };
  std::unique_ptr<evp_cipher_ctx_st, Free> context_;
};

/// Blocks [part × 2^32, (part + 1) × 2^32) of a Philox stream.
class PhiloxWords final : public RandomWords {
 public:
  /// @param part below 2^32.
  PhiloxWords(const PhiloxStream& stream, uint64_t part) : stream_(stream), next_(part << 32) {}
  /// @param words whole blocks of 4, or the rest of the last one is dropped.
  void fill(std::span<uint32_t> words) override;

 private:
  PhiloxStream stream_;
  uint64_t next_;
};

}  // namespace torchlore::privacy
