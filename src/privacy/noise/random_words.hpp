#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "../../core/kernels/philox_kernels.hpp"

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

/// The key stream of ChaCha20 (RFC 8439) under a key; `part` takes the last 8 bytes of the nonce, `extra`
/// the 4 before. One stream is at most 2^32 blocks of 64 bytes.
class ChaChaWords final : public RandomWords {
 public:
  ChaChaWords(const ChaChaKey& key, uint64_t part, uint32_t extra = 0);
  void fill(std::span<uint32_t> words) override;

 private:
  struct Free {
    void operator()(evp_cipher_ctx_st* context) const;
  };
  std::unique_ptr<evp_cipher_ctx_st, Free> context_;
};

/// The blocks of a Philox stream, 16 after 16 in the order of `NoiseKernels::philox`.
class PhiloxWords final : public RandomWords {
 public:
  explicit PhiloxWords(const kernels::PhiloxCounter& counter) : counter_(counter) {}
  /// @param words a multiple of 64, or the rest of the last 16 blocks is dropped.
  void fill(std::span<uint32_t> words) override;

 private:
  kernels::PhiloxCounter counter_;
};

}  // namespace torchlore::privacy
