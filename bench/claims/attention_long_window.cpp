// One forward over 32,768 tokens, of which each sees the last 1,024.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <fmt/format.h>

#include <vector>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "torchlore/attention/sparse_attention.hpp"

namespace torchlore::claims {
namespace {

void compare(Context& context, at::ScalarType dtype) {
  const int64_t n = context.quick() ? 1'024 : 32'768, window = context.quick() ? 64 : 1'024;
  const auto layout = BlockLayout::build(mask::causal() & mask::window(window), n, n);
  const auto q = at::randn({1, 8, n, 64}, dtype), k = at::randn({1, 8, n, 64}, dtype),
             v = at::randn({1, 8, n, 64}, dtype);
  const std::vector<Contender> contenders = {
      timed("sparse", [&] { sparse_attention(q, k, v, layout, {.allow_dense = false}); }),
      timed("dense", [&] { at::scaled_dot_product_attention(q, k, v); }),
      timed("dense and causal",
            [&] { at::scaled_dot_product_attention(q, k, v, {}, 0, /*is_causal=*/true); })};
  auto sampling = Sampling::of(context);
  if (!context.quick()) sampling = {.rounds = 3, .warmup = 0, .min_seconds = 0};
  const auto seconds = interleave(contenders, sampling);
  const auto* name = dtype == at::kFloat ? "float32" : "bfloat16";
  const auto line = [&](const char* part, const char* baseline, size_t other) {
    context.report({.part = fmt::format("{}, {}", name, part),
                    .setting = fmt::format("batch 1, 8 heads of 64, {}, n = {}, causal window of "
                                           "{}: {:.3f} of the blocks",
                                           name, n, window, layout.density()),
                    .baseline = baseline,
                    .measured = ratio(seconds[0], seconds[other]),
                    .bar = kNoBar,
                    .note = absolute_times(contenders, seconds)});
  };
  line("dense", "scaled_dot_product_attention, all pairs", 1);
  line("causal", "scaled_dot_product_attention, causal", 2);
}

void measure(Context& context) {
  const at::NoGradGuard no_grad;
  compare(context, at::kFloat);
  compare(context, at::kBFloat16);
}

const bool registered =
    add_claim({.name = "attention_long_window",
               .group = "attention",
               .promise = "a window of 1,024 over 32,768 tokens against dense attention",
               .measure = measure,
               .minutes = 5});

}  // namespace
}  // namespace torchlore::claims
