// Sparse attention's backward against that of LibTorch's dense attention, and of one head on two threads.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "claim.hpp"
#include "models/attention_task.hpp"

namespace torchlore::claims {
namespace {

using namespace models;

std::vector<TimedMask> masks_of(int64_t n) {
  std::vector<TimedMask> masks;
  for (const double share : {0.02, 0.05, 0.13, 0.25, 0.5}) {
    masks.push_back(random_mask(n, n, share));
    if (share < 0.3) masks.push_back(window_mask(n, share));
  }
  masks.push_back(causal_mask(n));
  masks.push_back(dense_mask(n, n));
  return masks;
}

void compare(Context& context, int64_t n, at::ScalarType dtype, const DensityBar& bar) {
  const auto masks = masks_of(n);
  const AttentionTask task({.queries = n, .keys = n}, dtype);
  std::vector<Contender> contenders = {task.dense_backward()};
  for (const auto& mask : masks) contenders.push_back(task.sparse_backward(mask));
  auto sampling = Sampling::of(context);
  if (!context.quick()) sampling = {.rounds = n > 4'096 ? 5 : 11, .warmup = 1, .min_seconds = 0.02};
  const auto seconds = interleave(contenders, sampling);
  report_nearest(
      context,
      {.part = fmt::format("{}, n = {}", name_of(dtype), n),
       .setting = fmt::format("batch 1, 8 heads of 64, {}, n = {}", name_of(dtype), n),
       .baseline =
           "the backward of scaled_dot_product_attention, not causal, same dtype; the bar of "
           "a mask that touches a share of the 64 x 64 blocks is " +
           fmt::format("{:.2f} share + {:.3f}", bar.per_density, bar.fixed)},
      masks, bar, seconds);
}

/// One head: its queries are cut into parts, so that both threads have work.
void one_head(Context& context, int64_t n) {
  const AttentionTask task({.queries = n, .keys = n, .heads = 1, .key_heads = 1}, at::kFloat);
  for (const auto& mask : {window_mask(n, 0.13), random_mask(n, n, 0.25), dense_mask(n, n)}) {
    const auto out = task.sparse(mask.layout);
    const auto on = [&](int threads) {
      return timed(
          fmt::format("{} threads", threads), [&] { task.backward(out); },
          [threads] { at::set_num_threads(threads); });
    };
    const std::vector<Contender> contenders = {on(1), on(2)};
    const auto seconds = interleave(contenders, Sampling::of(context));
    at::set_num_threads(static_cast<int>(context.threads()));
    context.report(
        {.part = "one head on two threads, " + mask.name,
         .setting = fmt::format("batch 1, 1 head of 64, float32, n = {}, {}", n, mask.text()),
         .baseline = "the same on one thread",
         .measured = ratio(seconds[1], seconds[0]),
         .bar = 0.65,
         .note = absolute_times(contenders, seconds)});
  }
}

void measure(Context& context) {
  const std::vector<int64_t> lengths =
      context.quick() ? std::vector<int64_t>{512} : std::vector<int64_t>{4'096, 8'192};
  for (const auto& [dtype, bar] : {std::pair{at::kFloat, DensityBar{0.85, 0.012}},
                                   std::pair{at::kBFloat16, DensityBar{0.62, 0.012}}}) {
    for (const int64_t n : lengths) compare(context, n, dtype, bar);
  }
  one_head(context, context.quick() ? 512 : 4'096);
}

const bool registered = add_claim({.name = "attention_backward",
                                   .group = "attention",
                                   .promise = "attention costs what its mask touches: backward",
                                   .measure = measure,
                                   .minutes = 8});

}  // namespace
}  // namespace torchlore::claims
