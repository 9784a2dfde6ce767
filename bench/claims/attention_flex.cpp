// The forward against Python's FlexAttention, compiled, on the same masks.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "claim.hpp"
#include "harness/peer.hpp"
#include "harness/timing.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore::claims {
namespace {

// As in bench/peers/flex_attention.py.
constexpr int64_t kBlock = 128;
constexpr int64_t kWindow = 512;
constexpr double kShare = 0.1;

struct Setting {
  int64_t tokens = 0;
  bool random = false;
  at::ScalarType dtype = at::kFloat;

  MaskSpec mask() const {
    if (!random) return mask::causal() & mask::window(kWindow);
    const double blocks = static_cast<double>(tokens) / kBlock;
    const auto count = std::max<int64_t>(1, std::lround(kShare * blocks));
    return mask::random_blocks(count, 1, {.block = kBlock});
  }
  std::string dtype_name() const { return dtype == at::kFloat ? "float32" : "bfloat16"; }
  std::string mask_name() const {
    return random ? "10 % random blocks of 128" : "causal window of 512";
  }
  std::vector<std::string> arguments() const {
    return {"--tokens", std::to_string(tokens),         "--random", random ? "1" : "0",
            "--bf16",   dtype == at::kFloat ? "0" : "1"};
  }
};

void compare(Context& context, const Setting& setting) {
  const auto n = setting.tokens;
  const auto layout = BlockLayout::build(setting.mask(), n, n);
  const auto random = [&] { return at::randn({1, 8, n, 64}, setting.dtype); };
  const auto q = random(), k = random(), v = random();
  std::vector<Contender> contenders = {timed(
      "sparse_attention", [&] { sparse_attention(q, k, v, layout, {.allow_dense = false}); })};
  Peer peer(context, "flex_attention.py", setting.arguments());
  if (peer.installed()) contenders.push_back(peer.contender("FlexAttention"));
  auto sampling = Sampling::of(context);
  if (!context.quick()) sampling = {.rounds = 9, .warmup = 1};
  const auto seconds = interleave(contenders, sampling);
  context.report(
      {.part = fmt::format("{}, n = {}, {}", setting.dtype_name(), n, setting.mask_name()),
       .setting = fmt::format("batch 1, 8 heads of 64, {}, n = {}, {}", setting.dtype_name(), n,
                              setting.mask_name()),
       .baseline = "flex_attention, compiled, its block mask made beforehand, " + peer.version(),
       .measured = peer.installed() ? ratio(seconds[0], seconds[1]) : Estimate{},
       .bar = setting.dtype == at::kFloat ? 0.55 : 0.30,
       .note = peer.installed() ? absolute_times(contenders, seconds) : kPeerMissing});
}

void measure(Context& context) {
  const at::NoGradGuard no_grad;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const bool random : {false, true}) {
      for (const int64_t tokens : {4'096, 8'192, 16'384}) {
        if (context.quick() && tokens > 4'096) continue;
        compare(context, {tokens, random, dtype});
      }
    }
  }
}

const bool registered =
    add_claim({.name = "attention_flex",
               .group = "attention",
               .promise = "attention on the same masks as FlexAttention, forward",
               .measure = measure,
               .minutes = 6});

}  // namespace
}  // namespace torchlore::claims
