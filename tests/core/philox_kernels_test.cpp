#include "../../src/core/kernels/philox_kernels.hpp"

#include <gtest/gtest.h>

#include <array>

#include "torchlore/core/philox.hpp"

namespace torchlore {
namespace {

TEST(PhiloxKernels, GiveTheStreamsBlocksOnEveryInstructionSet) {
  const PhiloxStream stream(0xDEAD'BEEF'0123'4567, 3, 4);
  const kernels::PhiloxCounter counter{.index = uint64_t{7} << 32 | 0xffff'fff0,
                                       .step = 3,
                                       .stream = 4,
                                       .key = {0x0123'4567, 0xDEAD'BEEF}};
  for (const char* name : {"portable", "avx2", "avx512"}) {
    const auto* set = kernels::philox_kernels(name);
    if (set == nullptr) continue;
    std::array<uint32_t, 128> words{};
    set->fill(words.data(), 2, counter);
    for (uint64_t block = 0; block < 32; ++block) {
      const auto expected = stream.block(counter.index + block);
      for (size_t w = 0; w < 4; ++w) {
        EXPECT_EQ(words[block / 16 * 64 + 16 * w + block % 16], expected[w]) << set->name;
      }
    }
  }
}

}  // namespace
}  // namespace torchlore
