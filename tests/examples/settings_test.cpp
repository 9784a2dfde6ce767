#include "../../examples/train_text/settings.hpp"

#include <gtest/gtest.h>

#include "support/message.hpp"
#include "support/temporary_folder.hpp"

namespace text {
namespace {

using torchlore::testing::message_of;

Settings parse(const std::vector<std::string>& words) { return apply(split_arguments(words)); }

std::string refusal(const std::vector<std::string>& words) {
  return message_of<c10::ValueError>([&] { parse(words); });
}

TEST(Settings, TakesBothSpellings) {
  const auto s = parse({"--steps", "7", "--learning-rate=0.5", "--device=cpu", "--resume"});
  EXPECT_EQ(s.steps, 7);
  EXPECT_EQ(s.learning_rate, 0.5);
  EXPECT_EQ(s.device, "cpu");
  EXPECT_TRUE(s.resume);
}

TEST(Settings, DataTakesSeveralFiles) {
  EXPECT_EQ(parse({"--data", "a.txt", "b c.txt", "--seed", "2"}).data, "a.txt\nb c.txt");
}

TEST(Settings, WhatIsNamedBesideQuickWins) {
  EXPECT_EQ(parse({"--steps", "3", "--quick"}).steps, 3);
  EXPECT_LT(parse({"--quick"}).steps, Settings{}.steps);
}

TEST(Settings, BadValuesAreNamed) {
  EXPECT_EQ(refusal({"--steps", "ten"}),
            "--steps must be a whole number of 1 or more, but is \"ten\"");
  EXPECT_EQ(refusal({"--layers=0"}), "--layers must be a whole number of 1 or more, but is \"0\"");
  EXPECT_EQ(refusal({"--minutes", "-1"}), "--minutes must be a number of 0 or more, but is \"-1\"");
  EXPECT_EQ(refusal({"--learning-rate", "nan"}),
            "--learning-rate must be a number of 0 or more, but is \"nan\"");
  EXPECT_EQ(refusal({"--only", "both"}), "--only must be one of plain, torchlore, but is \"both\"");
}

TEST(Settings, UnknownOptionsAreNamed) {
  EXPECT_EQ(refusal({"--stepz", "3"}), "unknown option \"--stepz\"; --help lists the options");
  EXPECT_EQ(refusal({"300"}), "unexpected \"300\"; options begin with --, see --help");
  EXPECT_EQ(refusal({"--quick=yes"}), "--quick takes no value, but has \"yes\"");
}

TEST(Settings, AMissingValueIsNamed) {
  EXPECT_EQ(refusal({"--steps"}), "--steps needs a value (N): optimizer steps of each side");
  EXPECT_EQ(refusal({"--steps", "--quick"}),
            "--steps needs a value (N): optimizer steps of each side");
}

TEST(Settings, HeadsMustDivideTheWidth) {
  EXPECT_EQ(refusal({"--width", "100", "--heads", "3"}),
            "--width 100 is not a multiple of --heads 3; choose a width that the heads divide");
}

TEST(Settings, AKeptRunIsReadBackAndNotContradicted) {
  const torchlore::testing::TemporaryFolder folder;
  const auto path = folder.path() / "settings";
  const auto kept =
      parse({"--width", "96", "--learning-rate", "0.00125", "--data", "a \"b\"", "c"});
  write_settings(kept, path);
  const auto read = resume_settings(read_settings(path), split_arguments({"--json", "x.json"}));
  EXPECT_EQ(read.width, 96);
  EXPECT_EQ(read.learning_rate, 0.00125);
  EXPECT_EQ(read.data, "a \"b\"\nc");
  EXPECT_EQ(read.json, "x.json");
  EXPECT_EQ(message_of<c10::ValueError>([&] {
              resume_settings(read_settings(path), split_arguments({"--width", "128"}));
            }),
            "this run has --width \"96\", not \"128\"; leave the option out, or start another run "
            "in another --run-dir");
  EXPECT_EQ(
      message_of<c10::ValueError>([&] { read_settings(folder.path() / "none" / "settings"); }),
      "there is no run to resume in \"" + (folder.path() / "none").string() +
          "\"; name its folder by --run-dir, or leave --resume out");
}

}  // namespace
}  // namespace text
