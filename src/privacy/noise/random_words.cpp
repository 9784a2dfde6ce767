#include "random_words.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <limits>

namespace torchlore::privacy {

void ChaChaWords::Free::operator()(evp_cipher_ctx_st* context) const {
  EVP_CIPHER_CTX_free(context);  // wipes the key schedule
}

ChaChaWords::ChaChaWords(const ChaChaKey& key, uint64_t part) : context_(EVP_CIPHER_CTX_new()) {
  // The block counter (4 bytes) and the nonce (12), little-endian.
  std::array<uint8_t, 16> start{};
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
  for (size_t i = 0; i < words.size(); i += 4) {
    const auto block = stream_.block(next_++);
    std::copy_n(block.begin(), std::min<size_t>(4, words.size() - i),
                words.begin() + static_cast<ptrdiff_t>(i));
  }
}

}  // namespace torchlore::privacy
