#include "child.hpp"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>

namespace torchlore::claims {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Both ends close on exec: a child must not hold another child's pipe open.
void open_pipe(int (&ends)[2]) {
  TORCH_CHECK(pipe2(ends, O_CLOEXEC) == 0, "cannot make a pipe: ", std::strerror(errno));
}

}  // namespace

Child::Child(const std::vector<std::string>& command) {
  int to_child[2];
  int from_child[2];
  open_pipe(to_child);
  open_pipe(from_child);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, to_child[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, from_child[1], STDOUT_FILENO);
  std::vector<char*> arguments;
  for (const auto& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  start_ = now();
  const int error = posix_spawnp(&id_, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(to_child[0]);
  close(from_child[1]);
  input_ = fdopen(to_child[1], "w");
  output_ = fdopen(from_child[0], "r");
  running_ = error == 0;
  if (error != 0) {
    close_input();
    std::fclose(output_);
    TORCH_CHECK(false, "cannot start ", command.front(), ": ", std::strerror(error));
  }
}

Child::~Child() {
  if (running_) {
    signal(SIGKILL);
    wait();
  }
  close_input();
  std::fclose(output_);
}

void Child::write_line(const std::string& text) {
  std::fputs((text + '\n').c_str(), input_);
  std::fflush(input_);
}

std::optional<std::string> Child::read_line() {
  std::string line;
  for (int c = std::fgetc(output_); c != EOF; c = std::fgetc(output_)) {
    if (c == '\n') return line;
    line += static_cast<char>(c);
  }
  return line.empty() ? std::nullopt : std::optional(line);
}

void Child::signal(int number) {
  if (running_) kill(id_, number);
}

ChildUse Child::wait() {
  close_input();
  while (std::fgetc(output_) != EOF) {
  }
  int status = 0;
  rusage use{};
  TORCH_CHECK(running_ && wait4(id_, &status, 0, &use) == id_, "cannot wait for a child process");
  running_ = false;
  return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .user_seconds = static_cast<double>(use.ru_utime.tv_sec) +
                          1e-6 * static_cast<double>(use.ru_utime.tv_usec),
          .wall_seconds = now() - start_,
          .peak_rss_bytes = static_cast<int64_t>(use.ru_maxrss) * 1024};
}

void Child::close_input() {
  if (input_ != nullptr) std::fclose(input_);
  input_ = nullptr;
}

std::vector<std::string> as_user(std::vector<std::string> command) {
  std::vector<std::string> prefix{"env"};
  for (const char* name :
       {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}) {
    prefix.insert(prefix.end(), {"-u", name});
  }
  command.insert(command.begin(), prefix.begin(), prefix.end());
  return command;
}

ChildUse run_command(const std::vector<std::string>& command) { return Child(command).wait(); }

}  // namespace torchlore::claims
