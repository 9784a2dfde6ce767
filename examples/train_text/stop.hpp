#pragma once

#include <unistd.h>

#include <csignal>
#include <ctime>

/// Ctrl-C: the first one asks the loop to save and end, a second one ends the program at once.
namespace text {

inline volatile std::sig_atomic_t stop_requested = 0;
inline volatile pid_t stop_child = 0;  ///< told of the signal too
inline volatile double stop_time = 0;

inline double monotonic_seconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// One Ctrl-C reaches a program more than once (from the terminal and from its parent): what comes
/// within half a second is the same one. Only async-signal-safe calls.
inline void on_stop_signal(int signal) {
  const double now = monotonic_seconds();
  if (stop_requested != 0 && now - stop_time > 0.5) {
    if (stop_child != 0) kill(stop_child, SIGKILL);
    _exit(128 + signal);
  }
  if (stop_requested == 0) stop_time = now;
  stop_requested = 1;
  if (stop_child != 0) kill(stop_child, signal);
}

inline void watch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace text
