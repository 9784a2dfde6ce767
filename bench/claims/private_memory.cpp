// The peak of a private gradient against that of plain forward and backward.
#include <fmt/format.h>
#include <torch/nn/module.h>

#include <functional>

#include "claim.hpp"
#include "harness/statistics.hpp"
#include "models/private_task.hpp"
#include "torchlore/memory/memory_meter.hpp"
#include "torchlore/privacy/clipped_sum.hpp"

namespace torchlore::claims {
namespace {

/// Bytes allocated at the highest point of `work`, above those before it.
double peak_of(const models::PrivateTask& task, const std::function<void()>& work) {
  double peak = 0;
  for (int i = 0; i < 3; ++i) {  // the last is of a steady state
    task.model->zero_grad();
    const MemoryMeter meter;
    work();
    peak = static_cast<double>(meter.peak().count());
  }
  return peak;
}

void compare(Context& context, const models::PrivateTask& task) {
  const auto clipping = ExampleClipping::flat(1.0);
  const double plain = peak_of(task, [&] { task.loss().backward(); });
  const double ours =
      peak_of(task, [&] { add_clipped_sum(task.losses(), *task.model, clipping); });
  constexpr double kMiB = 1048576;
  context.report({.part = task.name,
                  .setting = task.setting,
                  .baseline = "forward and backward of the mean loss",
                  .measured = ratio({ours}, {plain}),
                  .bar = 1.2,
                  .note = fmt::format("bytes of LibTorch's allocator at the peak, above those before "
                                      "the forward: {:.1f} MiB against {:.1f} MiB",
                                      ours / kMiB, plain / kMiB)});
}

void measure(Context& context) {
  for (const auto& task : models::private_tasks(context.quick())) compare(context, task);
}

const bool registered =
    add_claim({.name = "private_memory",
               .group = "privacy",
               .promise = "clipped sums of per-example gradients need little more memory than a "
                          "plain backward",
               .measure = measure});

}  // namespace
}  // namespace torchlore::claims
