#include "torchlore/privacy/noise_source.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "../../src/privacy/noise/noise_draw.hpp"
#include "support/message.hpp"

namespace torchlore {
namespace {

using privacy::ChaChaWords;
using privacy::NoiseDraw;
using testing::message_of;
using Words = std::array<uint32_t, 16>;

Words words_of(const NoiseDraw& draw, int64_t part) {
  Words words{};
  draw.words(part)->fill(words);
  return words;
}

Words drawn_from(const NoiseSource& source) { return words_of(NoiseDraw(source), 0); }

// RFC 8439, appendix A.1, test vectors 1 (all zeros) and 5 (the nonce's last byte is 2), as
// little-endian words.
TEST(ChaCha20, GivesTheKnownAnswersOfTheStandard) {
  Words words{};
  ChaChaWords(privacy::ChaChaKey{}, 0).fill(words);
  EXPECT_EQ(words, (Words{0xade0b876, 0x903df1a0, 0xe56a5d40, 0x28bd8653, 0xb819d2bd, 0x1aed8da0,
                          0xccef36a8, 0xc70d778b, 0x7c5941da, 0x8d485751, 0x3fe02477, 0x374ad8b8,
                          0xf4b8436a, 0x1ca11815, 0x69b687c3, 0x8665eeb2}));
  ChaChaWords(privacy::ChaChaKey{}, uint64_t{0x02000000} << 32).fill(words);
  EXPECT_EQ(words, (Words{0x374dc6c2, 0x3736d58c, 0xb904e24a, 0xcd3f93ef, 0x88228b1a, 0x96a4dfb3,
                          0x5b76ab72, 0xc727ee54, 0x0e0e978a, 0xf3145c95, 0x1b748ea8, 0xf786c297,
                          0x99c28f5f, 0x628314e8, 0x398a19fa, 0x6ded1b53}));
}

TEST(ChaCha20, GoesOnWhereItStopped) {
  std::array<uint32_t, 100> whole{}, parts{};
  ChaChaWords(privacy::ChaChaKey{1}, 7).fill(whole);
  ChaChaWords stream(privacy::ChaChaKey{1}, 7);
  stream.fill(std::span(parts).first(33));
  stream.fill(std::span(parts).subspan(33));
  EXPECT_EQ(whole, parts);
}

TEST(NoiseSource, IsSecureUnlessItsNameSaysOtherwise) {
  EXPECT_TRUE(NoiseSource().is_secure());
  EXPECT_TRUE(NoiseSource::secure().is_secure());
  EXPECT_FALSE(NoiseSource::fast_not_secure(1).is_secure());
}

TEST(NoiseSource, NoTwoDrawsShareBits) {
  const auto secure = NoiseSource::secure(), seeded = NoiseSource::fast_not_secure(1);
  for (const auto& source : {secure, seeded}) {
    const NoiseDraw one(source), two(source);
    EXPECT_NE(words_of(one, 0), words_of(two, 0));
    EXPECT_NE(words_of(one, 0), words_of(one, 1));
    EXPECT_EQ(words_of(one, 1), words_of(one, 1));
    Words more{};
    one.more_words(0, 0)->fill(more);
    EXPECT_NE(words_of(one, 0), more);
  }
  EXPECT_NE(drawn_from(NoiseSource::secure()), drawn_from(NoiseSource::secure()));
  EXPECT_NE(drawn_from(NoiseSource::fast_not_secure(1)),
            drawn_from(NoiseSource::fast_not_secure(2)));
}

TEST(NoiseSource, CopiesAreOneSource) {
  const auto source = NoiseSource::fast_not_secure(1);
  const auto copy = source;
  const auto first = drawn_from(source), second = drawn_from(copy);
  EXPECT_NE(first, second);
  const auto again = NoiseSource::fast_not_secure(1);
  EXPECT_EQ(drawn_from(again), first);
  EXPECT_EQ(drawn_from(again), second);
}

TEST(NoiseSource, GoesOnFromItsState) {
  const auto source = NoiseSource::fast_not_secure(0xFFFF'FFFF'0000'0001);
  drawn_from(source);
  const auto state = source.state_dict();
  const auto next = drawn_from(source);
  auto other = NoiseSource::fast_not_secure(3);
  other.load_state_dict(state);
  EXPECT_EQ(drawn_from(other), next);
}

TEST(NoiseSource, ASecureOneSavesNothingThatCouldRepeatIt) {
  auto source = NoiseSource::secure();
  const auto state = source.state_dict();
  EXPECT_EQ(state.size(), 1U);
  EXPECT_EQ(state_int(state, "secure"), 1);
  const auto before = drawn_from(source);
  source.load_state_dict(state);
  EXPECT_NE(drawn_from(source), before);
}

TEST(NoiseSource, RefusesAStateOfTheOtherKindOrADamagedOne) {
  auto secure = NoiseSource::secure(), seeded = NoiseSource::fast_not_secure(1);
  EXPECT_EQ(
      message_of<c10::ValueError>([&] { secure.load_state_dict(seeded.state_dict()); }),
      "the saved run drew noise from a not secure NoiseSource, and this one is secure; go on with "
      "the same kind");
  EXPECT_EQ(
      message_of<c10::ValueError>([&] { seeded.load_state_dict(secure.state_dict()); }),
      "the saved run drew noise from a secure NoiseSource, and this one is not secure; go on with "
      "the same kind");
  auto state = seeded.state_dict();
  state["calls"] = state_value(int64_t{-1});
  EXPECT_EQ(message_of<c10::ValueError>([&] { seeded.load_state_dict(state); }),
            "the state of a NoiseSource counts 0 to 2^32 calls, but \"calls\" is -1");
  state["calls"] = state_value(int64_t{1} << 32);
  seeded.load_state_dict(state);
  EXPECT_EQ(message_of<c10::ValueError>([&] { drawn_from(seeded); }),
            "a NoiseSource of one seed draws at most 4294967296 times; take another seed");
}

// Parent and child must not add the same noise: the difference would show the gradients bare.
TEST(NoiseSource, AForkDrawsOtherNoise) {
  const auto source = NoiseSource::secure();
  drawn_from(source);
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto words = drawn_from(source);
    const auto written = ::write(ends[1], words.data(), sizeof(words));
    ::_exit(written == static_cast<ssize_t>(sizeof(words)) ? 0 : 1);
  }
  Words theirs{};
  ASSERT_EQ(::read(ends[0], theirs.data(), sizeof(theirs)), static_cast<ssize_t>(sizeof(theirs)));
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_NE(drawn_from(source), theirs);
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace torchlore
