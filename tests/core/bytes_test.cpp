#include "torchlore/core/bytes.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "support/message.hpp"

namespace torchlore {
namespace {

using testing::message_of;

TEST(Bytes, AreCountedInPowersOf1024) {
  static_assert(KiB(1) == Bytes(1024));
  EXPECT_EQ(MiB(512).count(), 536'870'912);
  EXPECT_EQ(GiB(1.5).count(), 1'610'612'736);
  EXPECT_EQ(GiB(size_t{2}) - MiB(1024), GiB(1));
  EXPECT_EQ(KiB(0), Bytes());
  EXPECT_LT(MiB(1023), GiB(1));
}

TEST(Bytes, RefuseWhatIsNoSize) {
  EXPECT_EQ(message_of<c10::ValueError>([] { MiB(-1); }),
            "MiB must be given a number from 0 to 8 PiB, but got -1");
  EXPECT_EQ(message_of<c10::ValueError>([] { GiB(std::numeric_limits<double>::quiet_NaN()); }),
            "GiB must be given a number from 0 to 8 PiB, but got nan");
  EXPECT_THROW(GiB(std::numeric_limits<int64_t>::max()), c10::ValueError);
}

TEST(Bytes, AreWrittenInTheLargestUnit) {
  EXPECT_EQ(to_string(Bytes(0)), "0 bytes");
  EXPECT_EQ(to_string(Bytes(1023)), "1023 bytes");
  EXPECT_EQ(to_string(Bytes(-2048)), "-2 KiB");
  EXPECT_EQ(to_string(MiB(512)), "512 MiB");
  EXPECT_EQ(to_string(GiB(1.5)), "1.5 GiB");
  EXPECT_EQ(to_string(MiB(1.234)), "1.23 MiB");
  EXPECT_EQ(to_string(MiB(12.34)), "12.3 MiB");
  EXPECT_EQ(to_string(MiB(123.4)), "123 MiB");
  EXPECT_EQ(to_string(MiB(1023.9)), "1 GiB");
  EXPECT_EQ(to_string(GiB(99.99)), "100 GiB");
  EXPECT_EQ(to_string(GiB(4'000'000)), "3906 TiB");
}

}  // namespace
}  // namespace torchlore
