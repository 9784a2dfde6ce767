// What an OpMode costs where it is used: over whole steps of models that know nothing of it.
#include <torch/nn/module.h>

#include <utility>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "models/workload.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore::claims {
namespace {

/// Has a function of its own for an op that none of the models calls: its key is on, and nothing is
/// seen.
struct SeesNothing : OpHandler {
  int64_t count = 0;
  at::Tensor rms_norm(const at::Tensor& input, at::IntArrayRef shape,
                      const std::optional<at::Tensor>& weight, std::optional<double> eps) override {
    ++count;
    return OpHandler::rms_norm(input, shape, weight, eps);
  }
};

/// Counts every op.
struct CountAll : OpHandler {
  int64_t count = 0;
  void boxed(OpCall& call) override {
    ++count;
    call.run();
  }
};

template <typename Handler>
void forward_in_mode(const models::Workload& workload, Handler& handler) {
  at::Tensor loss;
  {
    const OpMode mode(handler);
    loss = workload.loss();
  }
  loss.backward();
}

template <typename Handler>
void step_in_mode(const models::Workload& workload, Handler& handler) {
  const OpMode mode(handler);
  workload.loss().backward();
}

/// A ratio near 1 asks for more than the usual samples.
Sampling sampling(const Context& context) {
  auto result = Sampling::of(context);
  if (!context.quick()) {
    result.rounds = 41;
    result.min_seconds = 0.2;
  }
  return result;
}

void compare(Context& context, const models::Workload& workload) {
  SeesNothing nothing;
  CountAll all;
  const auto zero_grad = [&] { workload.model->zero_grad(); };
  const std::vector<Contender> contenders = {
      timed(
          "plain", [&] { workload.loss().backward(); }, zero_grad),
      timed(
          "sees nothing", [&] { forward_in_mode(workload, nothing); }, zero_grad),
      timed(
          "counts", [&] { forward_in_mode(workload, all); }, zero_grad),
      timed(
          "sees nothing, backward too", [&] { step_in_mode(workload, nothing); }, zero_grad),
      timed(
          "counts, backward too", [&] { step_in_mode(workload, all); }, zero_grad)};
  const auto seconds = interleave(contenders, sampling(context));
  const std::pair<const char*, double> parts[] = {
      {"sees_nothing", 1.01}, {"counts", 1.03}, {"sees_nothing_step", 1.01}, {"counts_step", 1.03}};
  for (size_t i = 0; i < std::size(parts); ++i) {
    context.report(
        {.part = workload.name + "/" + parts[i].first,
         .setting = workload.setting + ", forward and backward",
         .baseline = "the same step without a mode",
         .measured = ratio(seconds[i + 1], seconds[0]),
         .bar = parts[i].second,
         .note = absolute_times({contenders[0], contenders[i + 1]}, {seconds[0], seconds[i + 1]})});
  }
}

void measure(Context& context) {
  for (const auto make : {&models::resnet18, &models::gpt, &models::lstm}) {
    compare(context, make(context.quick()));
  }
}

const bool registered =
    add_claim({.name = "op_mode_end_to_end",
               .group = "intercept",
               .promise = "an OpMode costs next to nothing over a step of an unmodified model",
               .measure = measure,
               .minutes = 4});

}  // namespace
}  // namespace torchlore::claims
