#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

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
    std::printf("%s%-9s  step %lld/%lld  held-out loss %.3f", terminal_ ? "\r" : "", side_.c_str(),
                static_cast<long long>(step), static_cast<long long>(steps_), loss_);
    if (step > 0) {
      const auto done = static_cast<double>(step);
      const auto to_do = static_cast<double>(std::max<int64_t>(0, steps_ - step));
      std::printf("  %.0f tokens/s  %s left",
                  done * static_cast<double>(tokens_per_step_) / seconds,
                  clock_text(seconds / done * to_do).c_str());
    }
    if (terminal_) std::printf("\033[K");
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
