#pragma once

#include <sys/types.h>

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace torchlore::claims {

/// What a finished process used.
struct ChildUse {
  int exit_code = 0;  ///< 128 + signal if a signal ended it
  double user_seconds = 0;
  double wall_seconds = 0;
  int64_t peak_rss_bytes = 0;
};

/// A child process with its standard input and output in our hands; its errors go to ours. It
/// shares our environment. Killed if it is still running when this object ends.
class Child {
 public:
  /// @throws c10::Error if it cannot be started, with the system's reason.
  explicit Child(const std::vector<std::string>& command);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void write_line(const std::string& text);
  /// The next line without its end; nothing at the end of the output.
  std::optional<std::string> read_line();
  /// Sends a signal, SIGKILL for instance.
  void signal(int number);
  /// Reads and drops what is left of its output, and waits for its end.
  ChildUse wait();
  pid_t id() const { return id_; }

 private:
  void close_input();

  pid_t id_ = -1;
  FILE* input_ = nullptr;
  FILE* output_ = nullptr;
  double start_ = 0;
  bool running_ = false;
};

/// The same command without the settings that this program makes for fair comparisons (see
/// settle_environment): the machine as a user has it.
std::vector<std::string> as_user(std::vector<std::string> command);

/// Runs a command to its end.
ChildUse run_command(const std::vector<std::string>& command);

}  // namespace torchlore::claims
