#include "noise_sampler.hpp"

#include <openssl/crypto.h>

#include <algorithm>
#include <array>

namespace torchlore::privacy {

void NoiseSampler::fill(std::span<int64_t> numbers, const NoiseDraw& draw, int64_t part) const {
  auto next = numbers.begin();
  this->draw(static_cast<int64_t>(numbers.size()), draw, part,
             [&](std::span<const int64_t> some) { next = std::ranges::copy(some, next).out; });
}

void draw_one_by_one(int64_t count, const NoiseDraw& draw, int64_t part, const NoiseSink& sink,
                     const std::function<int64_t(RandomBits&)>& one) {
  std::array<int64_t, 512> numbers;
  const auto words = draw.words(part);
  RandomBits bits(*words);
  while (count > 0) {
    const auto some =
        std::span(numbers).first(std::min(numbers.size(), static_cast<size_t>(count)));
    for (auto& number : some) number = one(bits);
    sink(some);
    count -= static_cast<int64_t>(some.size());
  }
  OPENSSL_cleanse(numbers.data(), sizeof(numbers));
}

}  // namespace torchlore::privacy
