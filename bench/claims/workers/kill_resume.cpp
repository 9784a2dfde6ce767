// Kills a training run again and again, for the claim of the same name. A program of its own, because
// the run's lives are forked, and LibTorch's threads do not survive a fork.
//   usage: FOLDER KILLS        prints: runs kills kills-while-writing lost different
#include <cstdlib>
#include <iostream>

#include "support/killed_run.hpp"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto result =
      torchlore::testing::kill_and_resume({.folder = argv[1], .kills = std::atoll(argv[2])});
  std::cout << result.runs << ' ' << result.kills << ' ' << result.kills_while_writing << ' '
            << result.lost << ' ' << result.different << '\n';
  std::filesystem::remove_all(argv[1]);
}
