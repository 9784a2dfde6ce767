// What an OpMode costs per op, on ops of one element.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "torchlore/intercept/op_call.hpp"
#include "torchlore/intercept/op_mode.hpp"

namespace torchlore::claims {
namespace {

constexpr int64_t kOps = 2'000;  // of one run, so that reading the clock does not count

struct SeesNothing : OpHandler {};

struct CountAddmm : OpHandler {
  int64_t count = 0;
  at::Tensor addmm(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                   const at::Scalar& beta, const at::Scalar& alpha) override {
    ++count;
    return OpHandler::addmm(bias, a, b, beta, alpha);
  }
};

struct CountAll : OpHandler {
  int64_t count = 0;
  void boxed(OpCall& call) override {
    ++count;
    call.run();
  }
};

/// One function for all sides, so that they run the very same instructions.
[[gnu::noinline]] void repeat(void (*op)()) {
  const at::NoGradGuard no_grad;
  for (int64_t i = 0; i < kOps; ++i) op();
}

Contender plain(void (*op)()) {
  return timed("plain", [op] { repeat(op); });
}

template <typename Handler>
Contender inside(std::string name, Handler& handler, void (*op)()) {
  return timed(std::move(name), [&handler, op] {
    const OpMode mode(handler);
    repeat(op);
  });
}

void addmm() {
  static const auto bias = at::zeros({1});
  static const auto x = at::ones({1, 1});
  at::addmm(bias, x, x);
}

void add() {
  static const auto x = at::zeros({1});
  static const auto one = at::ones({1});
  x.add_(one);
}

/// Nanoseconds that each op takes longer, paired by round.
Estimate extra(const std::vector<double>& with, const std::vector<double>& without) {
  std::vector<double> differences(with.size());
  for (size_t i = 0; i < with.size(); ++i) {
    differences[i] = (with[i] - without[i]) / static_cast<double>(kOps) * 1e9;
  }
  return median_estimate(std::move(differences));
}

/// Compares each of the contenders with the first.
void report(Context& context, const std::string& op, const std::vector<Contender>& contenders,
            const std::vector<double>& bars) {
  auto sampling = Sampling::of(context);
  if (!context.quick()) sampling.rounds = 41;
  const auto seconds = interleave(contenders, sampling);
  for (size_t i = 1; i < contenders.size(); ++i) {
    context.report(
        {.part = op + "/" + contenders[i].name,
         .setting = "at::" + op + " of one element, without gradients",
         .baseline = "the op without a mode",
         .measured = extra(seconds[i], seconds[0]),
         .unit = "ns",
         .bar = bars[i - 1],
         .note = "per op, " + std::to_string(kOps) + " in a row: " +
                 absolute_times({contenders[0], contenders[i]}, {seconds[0], seconds[i]})});
  }
}

void measure(Context& context) {
  const double floor = 5;  // nothing, as far as the clock can tell
  SeesNothing nothing;
  CountAddmm typed;
  CountAll boxed;
  report(context, "addmm",
         {plain(addmm), inside("observed", typed, addmm), inside("boxed", boxed, addmm)},
         {60, 150});
  report(context, "add_",
         {plain(add), inside("off", nothing, add), inside("other_op_observed", typed, add),
          inside("boxed", boxed, add)},
         {floor, floor, 150});
}

const bool registered =
    add_claim({.name = "op_mode_per_op",
               .group = "intercept",
               .promise = "an OpMode adds nothing to ops it does not see, and little to others",
               .measure = measure,
               .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
