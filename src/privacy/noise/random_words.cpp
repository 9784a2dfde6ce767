#include "random_words.hpp"

#include <c10/util/Exception.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>

namespace torchlore::privacy {

void ChaChaWords::Free::operator()(evp_cipher_ctx_st* context) const {
  EVP_CIPHER_CTX_free(context);  // wipes the key schedule
}

ChaChaWords::ChaChaWords(const ChaChaKey& key, uint64_t part, uint32_t extra)
    : context_(EVP_CIPHER_CTX_new()) {
  // The block counter (4 bytes) and the nonce (12), little-endian.
  std::array<uint8_t, 16> start{};
  for (size_t i = 0; i < 4; ++i) start[4 + i] = static_cast<uint8_t>(extra >> (8 * i));
  for (size_t i = 0; i < 8; ++i) start[8 + i] = static_cast<uint8_t>(part >> (8 * i));
  const bool ready =
      context_ != nullptr &&
      EVP_EncryptInit_ex(context_.get(), EVP_chacha20(), nullptr, key.data(), start.data()) == 1;
  TORCH_CHECK(ready,
              "OpenSSL's libcrypto cannot start ChaCha20 (a provider that lacks it?); without "
              "it there is no secure noise");
}

void ChaChaWords::fill(std::span<uint32_t> words) {
  // The key stream is the encryption of zeros.
  std::memset(words.data(), 0, words.size_bytes());
  auto* bytes = reinterpret_cast<unsigned char*>(words.data());
  constexpr size_t kMost = size_t{1} << 30;  // OpenSSL counts bytes in an int
  for (size_t done = 0; done < words.size_bytes();) {
    const auto size = static_cast<int>(std::min(words.size_bytes() - done, kMost));
    int written = 0;
    const int ok = EVP_EncryptUpdate(context_.get(), bytes + done, &written, bytes + done, size);
    TORCH_CHECK(ok == 1 && written == size, "OpenSSL's ChaCha20 failed; no noise was drawn");
    done += static_cast<size_t>(size);
  }
}

void PhiloxWords::fill(std::span<uint32_t> words) {
  constexpr auto kGroup = static_cast<size_t>(kernels::kPhiloxWords);
  const auto& kernels = kernels::philox_kernels();
  const size_t whole = words.size() / kGroup, rest = words.size() % kGroup;
  kernels.fill(words.data(), static_cast<int64_t>(whole), counter_);
  counter_.index += whole * kernels::kPhiloxBlocks;
  if (rest == 0) return;
  std::array<uint32_t, kGroup> last;
  kernels.fill(last.data(), 1, counter_);
  counter_.index += kernels::kPhiloxBlocks;
  std::copy_n(last.begin(), rest, words.end() - static_cast<ptrdiff_t>(rest));
}

}  // namespace torchlore::privacy
