#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>

namespace text {

inline std::string clock_text(double seconds) {
  const auto whole = static_cast<long long>(seconds + 0.5);
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%lld:%02lld", whole / 60, whole % 60);
  return buffer;
}

/// One line that renews itself on a terminal; else a plain line at each evaluation.
class Progress {
 public:
  Progress(std::string side, int64_t steps, int64_t tokens_per_step)
      : side_(std::move(side)), steps_(steps), tokens_per_step_(tokens_per_step) {}

  /// After a step. `seconds` of training were spent on `step` steps.
  void step(int64_t step, double seconds) {
    if (!terminal_ || seconds - shown_ < 0.2) return;
    shown_ = seconds;
    print(step, seconds);
  }

  void evaluated(int64_t step, double seconds, double loss) {
    loss_ = loss;
    print(step, seconds);
    if (!terminal_) std::putchar('\n');
  }

  void finish() {
    if (terminal_) std::putchar('\n');
    std::fflush(stdout);
  }

 private:
  void print(int64_t step, double seconds) {
    const auto done = static_cast<double>(step);
    const double speed = seconds > 0 ? done * static_cast<double>(tokens_per_step_) / seconds : 0;
    const double left =
        step > 0 && step < steps_ ? seconds / done * static_cast<double>(steps_ - step) : 0;
    std::printf("%s%-9s  step %lld/%lld  held-out loss %.3f  %.0f tokens/s  %s left%s",
                terminal_ ? "\r" : "", side_.c_str(), static_cast<long long>(step),
                static_cast<long long>(steps_), loss_, speed, clock_text(left).c_str(),
                terminal_ ? "\033[K" : "");
    std::fflush(stdout);
  }

  std::string side_;
  int64_t steps_;
  int64_t tokens_per_step_;
  bool terminal_ = isatty(STDOUT_FILENO) != 0;
  double shown_ = -1;
  double loss_ = 0;
};

}  // namespace text
