// The program as its user meets it: interrupted, resumed, and refused.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <vector>

#include "support/temporary_folder.hpp"

#ifndef TRAIN_TEXT
#define TRAIN_TEXT "train_text"  // built without the examples
#endif

namespace {

/// A run of train_text whose output, errors included, is read through a pipe.
class Program {
 public:
  explicit Program(std::vector<std::string> arguments) {
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("no pipe");
    process_ = fork();
    if (process_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      arguments.insert(arguments.begin(), TRAIN_TEXT);
      std::vector<char*> words;
      for (auto& argument : arguments) words.push_back(argument.data());
      words.push_back(nullptr);
      execv(words[0], words.data());
      _exit(127);
    }
    close(ends[1]);
    output_ = fdopen(ends[0], "r");
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() { std::fclose(output_); }

  /// Reads on until a line holds `text`, or the end; what was read is kept.
  bool read_until(const std::string& text) {
    char line[4096];
    while (std::fgets(line, sizeof line, output_) != nullptr) {
      seen_ += line;
      if (std::string(line).find(text) != std::string::npos) return true;
    }
    return false;
  }
  void interrupt() const { kill(process_, SIGINT); }
  /// Reads the rest and waits: the exit code, or -signal.
  int finish() {
    read_until("\xff never");
    int status = 0;
    waitpid(process_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  const std::string& output() const { return seen_; }

 private:
  pid_t process_ = 0;
  std::FILE* output_ = nullptr;
  std::string seen_ = {};
};

/// All steps and losses of both curves, as the file has them.
std::vector<std::string> curves(const std::filesystem::path& json) {
  std::ifstream file(json);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const std::regex point(R"re("step":(\d+),"seconds":[^,]*,"tokens":\d+,"loss":([\d.]+))re");
  std::vector<std::string> points;
  for (std::sregex_iterator i(text.begin(), text.end(), point), end; i != end; ++i) {
    points.push_back((*i)[1].str() + " " + (*i)[2].str());
  }
  return points;
}

class TrainText : public ::testing::Test {
 protected:
  void SetUp() override {
    if (access(TRAIN_TEXT, X_OK) != 0) GTEST_SKIP() << "built without the examples";
  }

  std::vector<std::string> arguments(const std::string& run, const std::string& json) const {
    return {"--quick", "--steps",   "90",          "--precision", "fp32",        "--minutes",
            "0",       "--run-dir", folder_ / run, "--json",      folder_ / json};
  }

  torchlore::testing::TemporaryFolder folder_;
};

TEST_F(TrainText, AnInterruptedRunEndsAsAnUninterruptedOne) {
  Program whole(arguments("whole", "whole.json"));
  ASSERT_EQ(whole.finish(), 0) << whole.output();
  const auto expected = curves(folder_ / "whole.json");
  ASSERT_GE(expected.size(), 2 * 16u);  // both sides: at the start, and at least 15 times

  Program interrupted(arguments("parts", "parts.json"));
  ASSERT_TRUE(interrupted.read_until("plain      step 12/90"));
  interrupted.interrupt();
  EXPECT_EQ(interrupted.finish(), 130) << interrupted.output();
  EXPECT_NE(interrupted.output().find("Saved. Go on with: train_text --resume --run-dir "),
            std::string::npos);

  Program again({"--resume", "--run-dir", folder_ / "parts"});
  ASSERT_TRUE(again.read_until("torchlore  step 24/90"));
  again.interrupt();
  EXPECT_EQ(again.finish(), 130) << again.output();

  Program last({"--resume", "--run-dir", folder_ / "parts", "--json", folder_ / "parts.json"});
  EXPECT_EQ(last.finish(), 0) << last.output();
  EXPECT_EQ(curves(folder_ / "parts.json"), expected);
}

TEST_F(TrainText, AnUnfinishedRunIsNotThrownAway) {
  Program interrupted(arguments("run", "run.json"));
  ASSERT_TRUE(interrupted.read_until("plain      step 6/90"));
  interrupted.interrupt();
  ASSERT_EQ(interrupted.finish(), 130) << interrupted.output();

  Program fresh(arguments("run", "run.json"));
  EXPECT_EQ(fresh.finish(), 1);
  EXPECT_NE(
      fresh.output().find("train_text: \"" + (folder_ / "run").string() +
                          "\" holds a run that is not finished; go on with it by --resume, or "
                          "remove it, or name another --run-dir\n"),
      std::string::npos)
      << fresh.output();
}

TEST_F(TrainText, ABadOptionEndsWithItsMessage) {
  Program program({"--steps", "none"});
  EXPECT_EQ(program.finish(), 1);
  EXPECT_EQ(program.output(),
            "train_text: --steps must be a whole number of 1 or more, but is \"none\"\n");
}

}  // namespace
