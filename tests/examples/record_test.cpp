#include "../../examples/train_text/record.hpp"

#include <gtest/gtest.h>

#include "support/message.hpp"
#include "support/temporary_folder.hpp"

namespace text {
namespace {

using torchlore::testing::message_of;

const Record kRecord{.side = "plain",
                     .done = true,
                     .step = 20,
                     .seconds = 0.1 + 0.2,
                     .peak_memory = 1 << 20,
                     .parameters = 5,
                     .curve = {{0, 0, 5.0}, {10, 1.0, 3.0}, {20, 3.0, 2.0}},
                     .sample = "two\nlines \x01"};

TEST(Record, TimeToALossLiesOnTheLineBetweenEvaluations) {
  EXPECT_EQ(seconds_to(kRecord, 2.0), 3.0);
  EXPECT_EQ(seconds_to(kRecord, 2.25), 2.5);
  EXPECT_EQ(seconds_to(kRecord, 3.0), 1.0);
  EXPECT_EQ(seconds_to(kRecord, 6.0), 0.0);
  EXPECT_EQ(seconds_to(kRecord, 1.9), std::nullopt);
}

TEST(Record, IsReadBackAsWritten) {
  const torchlore::testing::TemporaryFolder folder;
  write_record(kRecord, folder.path() / "r");
  const auto read = read_record(folder.path() / "r");
  ASSERT_TRUE(read);
  EXPECT_EQ(read->side, "plain");
  EXPECT_EQ(read->precision, "fp32");
  EXPECT_TRUE(read->done);
  EXPECT_EQ(read->step, 20);
  EXPECT_EQ(read->seconds, 0.1 + 0.2);
  EXPECT_EQ(read->peak_memory, 1 << 20);
  ASSERT_EQ(read->curve.size(), 3u);
  EXPECT_EQ(read->curve[1].loss, 3.0);
  EXPECT_EQ(read->sample, kRecord.sample);
}

TEST(Record, ThereMayBeNone) { EXPECT_FALSE(read_record("/nowhere/at/all.record")); }

TEST(Record, ADamagedFileIsNamed) {
  const torchlore::testing::TemporaryFolder folder;
  const auto path = folder.path() / "r";
  std::ofstream(path) << "plain fp32 1 20";
  EXPECT_EQ(message_of<c10::ValueError>([&] { read_record(path); }),
            '"' + path.string() + "\" is damaged; remove the run's folder and start again");
}

}  // namespace
}  // namespace text
