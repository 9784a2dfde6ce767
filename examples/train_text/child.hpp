#pragma once

#include <c10/util/Exception.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <iostream>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "stop.hpp"

namespace text {

/// Runs `f` in a process of its own and waits for it: its memory is its own. The program must not
/// have used LibTorch's threads or an accelerator before: neither survives a fork.
/// @throws c10::Error if the child fails (it has said why).
template <typename F>
void in_child(F&& f) {
  std::fflush(nullptr);
  const pid_t child = fork();
  TORCH_CHECK(child >= 0, "cannot start a process: ", std::strerror(errno));
  if (child == 0) {
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // save and end if the parent is killed
#endif
    int code = 0;
    try {
      f();
    } catch (const c10::Error& error) {
      std::cerr << "train_text: " << error.what_without_backtrace() << '\n';
      code = 1;
    } catch (const std::exception& error) {
      std::cerr << "train_text: " << error.what() << '\n';
      code = 1;
    }
    std::fflush(nullptr);
    _exit(code);
  }
  stop_child = child;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  stop_child = 0;
  TORCH_CHECK(!WIFSIGNALED(status), "the training process was ended by signal ", WTERMSIG(status),
              "; --resume goes on from its last save");
  TORCH_CHECK(WEXITSTATUS(status) == 0, "training failed");
}

}  // namespace text
