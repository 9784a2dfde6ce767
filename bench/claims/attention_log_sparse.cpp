// How the time of log-sparse attention grows with the length of the sequence.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <string>
#include <vector>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore::claims {
namespace {

constexpr double kBar = 1.20;

/// Attention of one length.
struct Task {
  explicit Task(int64_t n)
      : tokens(n), layout(BlockLayout::build(mask::log_sparse(), n, n)), qkv(3) {
    for (auto& t : qkv) t = at::randn({1, 8, n, 64}).requires_grad_(true);
  }

  at::Tensor forward() const {
    return sparse_attention(qkv[0], qkv[1], qkv[2], layout, {.allow_dense = false});
  }
  std::string name() const { return fmt::format("n = {}", tokens); }

  int64_t tokens;
  BlockLayout layout;
  std::vector<at::Tensor> qkv;
};

/// The slope of log(seconds) over log(tokens), by least squares.
double exponent(const std::vector<Task>& tasks, const std::vector<double>& seconds) {
  const auto count = static_cast<double>(tasks.size());
  double x = 0, y = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const double length = std::log(static_cast<double>(tasks[i].tokens));
    const double time = std::log(seconds[i]);
    x += length / count;
    y += time / count;
    xx += length * length / count;
    xy += length * time / count;
  }
  return (xy - x * y) / (xx - x * x);
}

/// The exponent of each round, and the nanoseconds of a pair at both ends.
void report(Context& context, const char* part, const std::vector<Task>& tasks,
            const std::vector<Contender>& contenders) {
  auto sampling = Sampling::of(context);
  if (!context.quick()) sampling = {.rounds = 9, .warmup = 1, .min_seconds = 0.02};
  const auto seconds = interleave(contenders, sampling);
  std::vector<double> exponents;
  for (size_t round = 0; round < seconds[0].size(); ++round) {
    std::vector<double> of_round;
    for (const auto& of_task : seconds) of_round.push_back(of_task[round]);
    exponents.push_back(exponent(tasks, of_round));
  }
  context.report(
      {.part = part,
       .setting = fmt::format("batch 1, 8 heads of 64, float32, n = {} to {} by doubling",
                              tasks.front().tokens, tasks.back().tokens),
       .baseline = "time = c n^x; the number of keys alone gives 1.094 from 4,096 to "
                   "131,072",
       .measured = median_estimate(exponents),
       .unit = "(exponent)",
       .bar = kBar,
       .note = absolute_times(contenders, seconds)});
}

void measure(Context& context) {
  std::vector<Task> tasks;
  const int64_t last = context.quick() ? 4'096 : 131'072;
  for (int64_t n = context.quick() ? 1'024 : 4'096; n <= last; n *= 2) tasks.emplace_back(n);
  std::vector<Contender> forward, backward;
  for (const auto& task : tasks) {
    forward.push_back(timed(task.name(), [&task] {
      const at::NoGradGuard no_grad;
      task.forward();
    }));
    const auto out = task.forward();
    backward.push_back(timed(task.name(), [&task, out, grad_out = at::randn(out.sizes())] {
      torch::autograd::grad({out}, task.qkv, {grad_out}, /*retain_graph=*/true);
    }));
  }
  report(context, "forward", tasks, forward);
  report(context, "backward", tasks, backward);
}

const bool registered = add_claim({.name = "attention_log_sparse",
                                   .group = "attention",
                                   .promise = "log-sparse attention takes little more than n log n",
                                   .measure = measure});

}  // namespace
}  // namespace torchlore::claims
