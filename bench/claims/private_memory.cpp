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

using MakeTask = std::function<models::PrivateTask(bool small)>;

/// The most that is allocated at once in a steady state: parameters, batch, activations, gradients.
double peak_of(Context& context, const MakeTask& make, bool is_private) {
  MemoryMeter meter;
  const auto task = make(context.quick());
  for (int i = 0; i < 3; ++i) {
    task.model->zero_grad();
    meter.reset_peak();
    if (is_private) {
      add_clipped_sum(task.losses(), *task.model, ExampleClipping::flat(1.0));
    } else {
      task.loss().backward();
    }
  }
  return static_cast<double>(meter.peak().count());
}

void compare(Context& context, const MakeTask& make) {
  const double plain = peak_of(context, make, false);
  const double ours = peak_of(context, make, true);
  const auto task = make(context.quick());
  constexpr double kMiB = 1048576;
  context.report({.part = task.name,
                  .setting = task.setting,
                  .baseline = "forward and backward of the mean loss",
                  .measured = ratio({ours}, {plain}),
                  .bar = 1.2,
                  .note = fmt::format("bytes of LibTorch's allocator at the peak, parameters and "
                                      "batch included: {:.1f} MiB against {:.1f} MiB",
                                      ours / kMiB, plain / kMiB)});
}

void measure(Context& context) {
  compare(context, models::private_mlp);
  compare(context, [](bool small) { return models::private_cnn(false, small); });
  compare(context, [](bool small) { return models::private_cnn(true, small); });
  compare(context, models::private_transformer);
}

const bool registered =
    add_claim({.name = "private_memory",
               .group = "privacy",
               .promise = "clipped sums of per-example gradients need little more memory than a "
                          "plain backward",
               .measure = measure});

}  // namespace
}  // namespace torchlore::claims
