// What ActivationBudget costs where it drops nothing: recording the ops.
#include "claim.hpp"
#include "harness/timing.hpp"
#include "harness/training_pass.hpp"
#include "torchlore/memory/activation_budget.hpp"

namespace torchlore::claims {
namespace {

void compare(Context& context, const models::Workload& workload, double bar) {
  TrainingPass pass(workload);
  int64_t ops = 0;
  const auto prepare = [&] { pass.prepare(); };
  const std::vector<Contender> contenders{
      timed(
          "recorded",
          [&] {
            at::Tensor loss;
            {
              ActivationBudget budget(GiB(4096));
              loss = workload.loss();
              ops = budget.stats()->ops;
            }
            loss.backward();
          },
          prepare),
      timed(
          "plain", [&] { workload.loss().backward(); }, prepare)};
  const auto seconds = interleave(contenders, Sampling::of(context));
  context.report({.part = workload.name,
                  .setting = workload.setting + ", unlimited budget",
                  .baseline = "the plain model",
                  .measured = ratio(seconds[0], seconds[1]),
                  .bar = bar,
                  .note = std::to_string(ops) + " ops; forward and backward; " +
                          absolute_times(contenders, seconds)});
}

void measure(Context& context) {
  const bool small = context.quick();
  compare(context, models::transformer_d128(small), 1.02);
  compare(context, models::transformer_d512(small), 1.02);
  compare(context, models::resnet18(small), 1.02);
  compare(context, models::lstm_cell(small), 1.10);
}

const bool registered = add_claim({.name = "activation_budget_recording",
                                   .group = "memory",
                                   .promise = "an activation budget that is never reached costs "
                                              "next to nothing",
                                   .measure = measure,
                                   .minutes = 5});

}  // namespace
}  // namespace torchlore::claims
