// One fused AdamW step against torch::optim::AdamW and against Python's fused=True.
#include "torchlore/optimizer/fused_adamw.hpp"

#include "claim.hpp"
#include "harness/parameters.hpp"
#include "harness/peer.hpp"
#include "harness/timing.hpp"

namespace torchlore::claims {
namespace {

void measure(Context& context) {
  const Sizes sizes{100, context.quick() ? 2'500 : 250'000};
  const torch::optim::AdamWOptions options(1e-3);
  FusedAdamW ours(sizes.parameters(), options);
  torch::optim::AdamW libtorch(sizes.parameters(), options);
  std::vector<Contender> contenders = {timed("FusedAdamW", [&] { ours.step(); }),
                                       timed("torch::optim::AdamW", [&] { libtorch.step(); })};
  Peer peer(context, "adamw.py", sizes.arguments());
  if (peer.installed()) contenders.push_back(peer.contender("Python fused"));
  const auto seconds = interleave(contenders, Sampling::of(context));
  const auto note = absolute_times(contenders, seconds);

  context.report({.part = "libtorch",
                  .setting = sizes.text(),
                  .baseline = "torch::optim::AdamW",
                  .measured = ratio(seconds[0], seconds[1]),
                  .bar = 0.45,
                  .note = note});
  context.report({.part = "python",
                  .setting = sizes.text(),
                  .baseline = "torch.optim.AdamW(fused=True), " + peer.version(),
                  .measured = peer.installed() ? ratio(seconds[0], seconds[2]) : Estimate{},
                  .bar = 1.05,
                  .note = peer.installed() ? note : kPeerMissing});
}

const bool registered =
    add_claim({.name = "fused_adamw",
               .group = "optimizer",
               .promise = "an AdamW step against LibTorch's and Python's fused one",
               .measure = measure});

}  // namespace
}  // namespace torchlore::claims
