// The sum of clipped per-example gradients against plain forward and backward.
#include <torch/nn/module.h>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "models/private_task.hpp"
#include "torchlore/privacy/clipped_sum.hpp"

namespace torchlore::claims {
namespace {

double bar_of(const models::PrivateTask& task) {
  if (task.name == "mlp") return 1.03;
  if (task.name == "cnn") return 1.08;
  return task.name == "cnn_group_norm" ? 1.12 : 1.06;
}

void compare(Context& context, const models::PrivateTask& task) {
  const auto clear = [&] { task.model->zero_grad(); };
  const auto clipping = ExampleClipping::flat(1.0);
  const std::vector<Contender> contenders = {
      timed("clipped sum", [&] { add_clipped_sum(task.losses(), *task.model, clipping); }, clear),
      timed("plain", [&] { task.loss().backward(); }, clear)};
  const auto seconds = interleave(contenders, Sampling::of(context));
  context.report({.part = task.name,
                  .setting = task.setting + ", every example clipped to norm 1",
                  .baseline = "forward and backward of the mean loss",
                  .measured = ratio(seconds[0], seconds[1]),
                  .bar = bar_of(task),
                  .note = absolute_times(contenders, seconds)});
}

void measure(Context& context) {
  for (const auto& task : models::private_tasks(context.quick())) compare(context, task);
}

const bool registered = add_claim(
    {.name = "private_gradients",
     .group = "privacy",
     .promise = "clipped sums of per-example gradients cost little more than a plain backward",
     .measure = measure,
     .minutes = 1.5});

}  // namespace
}  // namespace torchlore::claims
