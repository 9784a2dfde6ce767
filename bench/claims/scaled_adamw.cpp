// Check, unscale, clip and AdamW together: what follows backward in a mixed-precision step.
#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/nn/utils/clip_grad.h>

#include <cmath>

#include "claim.hpp"
#include "harness/parameters.hpp"
#include "harness/peer.hpp"
#include "harness/timing.hpp"
#include "torchlore/optimizer/fused_adamw.hpp"
#include "torchlore/precision/loss_scaler.hpp"

namespace torchlore::claims {
namespace {

// As in gradient_pass.cpp: with a loss scale of 1/4 and a bound of 1 and 2 in turn, every step
// clips.
constexpr double kScale = 0.25;

/// Parameters with an optimizer, and the bound of the next step.
template <typename Optimizer>
struct Side {
  explicit Side(const Sizes& sizes)
      : parameters(sizes.parameters()), optimizer(parameters, torch::optim::AdamWOptions(1e-3)) {}

  double next_bound() { return bound = 3 - bound; }

  std::vector<at::Tensor> parameters;
  Optimizer optimizer;
  double bound = 1;
};

/// Gradients are read once; the optimizer divides them in its own pass.
void step_ours(Side<FusedAdamW>& side, LossScaler& scaler) {
  scaler.step_clipped(side.optimizer, side.next_bound());
}

/// What a C++ user writes who looks for inf and NaN tensor by tensor.
void step_checked(Side<torch::optim::AdamW>& side) {
  bool finite = true;
  for (const auto& parameter : side.parameters) {
    auto grad = parameter.grad();
    grad.mul_(1 / kScale);
    finite = finite && at::isfinite(grad).all().item<bool>();
  }
  torch::nn::utils::clip_grad_norm_(side.parameters, side.next_bound());
  if (finite) side.optimizer.step();
}

/// The same by one who lets the norm tell.
void step_unchecked(Side<torch::optim::AdamW>& side) {
  for (const auto& parameter : side.parameters) parameter.grad().mul_(1 / kScale);
  const double norm = torch::nn::utils::clip_grad_norm_(side.parameters, side.next_bound());
  if (std::isfinite(norm)) side.optimizer.step();
}

void measure(Context& context) {
  const Sizes sizes{100, context.quick() ? 2'500 : 250'000};
  LossScaler scaler({.init_scale = kScale});
  scaler.scale(at::scalar_tensor(1.0));
  Side<FusedAdamW> ours(sizes);
  Side<torch::optim::AdamW> libtorch(sizes);
  std::vector<Contender> contenders = {
      timed(
          "torchlore", [&] { step_ours(ours, scaler); }, [&] { scaler.update(kScale); }),
      timed("C++ with isfinite", [&] { step_checked(libtorch); }),
      timed("C++ by the norm", [&] { step_unchecked(libtorch); })};
  auto arguments = sizes.arguments();
  arguments.insert(arguments.end(), {"--scaled", "1"});
  Peer peer(context, "adamw.py", arguments);
  if (peer.installed()) contenders.push_back(peer.contender("Python fused"));
  const auto seconds = interleave(contenders, Sampling::of(context));
  const auto note = absolute_times(contenders, seconds);

  const auto setting = sizes.text() + ", clipping active";
  context.report(
      {.part = "cpp_loop",
       .setting = setting,
       .baseline = "unscale and isfinite per tensor, clip_grad_norm_, torch::optim::AdamW",
       .measured = ratio(seconds[0], seconds[1]),
       .bar = 0.40,
       .note = note});
  context.report(
      {.part = "cpp_loop_by_norm",
       .setting = setting,
       .baseline = "unscale per tensor, clip_grad_norm_, torch::optim::AdamW if the norm is finite",
       .measured = ratio(seconds[0], seconds[2]),
       .bar = 0.40,
       .note = note});
  context.report(
      {.part = "python",
       .setting = setting,
       .baseline = "GradScaler.unscale_, clip_grad_norm_(foreach=True), GradScaler.step of "
                   "AdamW(fused=True), " +
                   peer.version(),
       .measured = peer.installed() ? ratio(seconds[0], seconds[3]) : Estimate{},
       .bar = 0.80,
       .note = peer.installed() ? note : kPeerMissing});
}

const bool registered = add_claim({.name = "scaled_adamw",
                                   .group = "optimizer",
                                   .promise = "check, unscale, clip and AdamW together",
                                   .measure = measure});

}  // namespace
}  // namespace torchlore::claims
