#include <gtest/gtest.h>

#include "support/killed_run.hpp"

namespace torchlore {
namespace {

/// Nothing else may be in this program: the run's lives are forked from it.
TEST(RunStateKill, ContinuesBitForBitAfterEveryKill) {
  const auto folder = std::filesystem::path(::testing::TempDir()) /
                      ("torchlore_kill_" + std::to_string(::getpid()));
  const auto result = testing::kill_and_resume({.folder = folder, .kills = 60});
  EXPECT_GE(result.kills, 60);
  EXPECT_EQ(result.lost, 0);
  EXPECT_EQ(result.different, 0);
  std::printf("%lld runs, %lld kills, %lld of them while writing\n",
              static_cast<long long>(result.runs), static_cast<long long>(result.kills),
              static_cast<long long>(result.kills_while_writing));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace torchlore
