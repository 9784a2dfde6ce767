// Sparse attention's forward against LibTorch's dense attention, by the share of blocks that the mask touches.
#include <fmt/format.h>

#include "claim.hpp"
#include "models/attention_task.hpp"

namespace torchlore::claims {
namespace {

using namespace models;

struct Length {
  int64_t n = 0;
  int64_t rounds = 0;
  std::vector<double> shares = {};
};

// Longer arms, fewer rounds.
const std::vector<Length> kLengths = {{4'096, 15, {0.02, 0.05, 0.13, 0.25, 0.5}},
                                      {8'192, 9, {0.02, 0.05, 0.13, 0.25, 0.5}},
                                      {16'384, 5, {0.02, 0.13, 0.5}}};

std::vector<TimedMask> masks_of(const Length& length) {
  std::vector<TimedMask> masks;
  for (const double share : length.shares) {
    masks.push_back(random_mask(length.n, length.n, share));
    if (share < 0.3) masks.push_back(window_mask(length.n, share));
  }
  masks.push_back(causal_mask(length.n));
  masks.push_back(dense_mask(length.n, length.n));
  return masks;
}

void compare(Context& context, const Length& length, at::ScalarType dtype, const DensityBar& bar) {
  const auto masks = masks_of(length);
  const AttentionTask task({.queries = length.n, .keys = length.n}, dtype);
  std::vector<Contender> contenders = {task.dense_forward()};
  for (const auto& mask : masks) contenders.push_back(task.sparse_forward(mask));
  auto sampling = Sampling::of(context);
  if (!context.quick()) sampling = {.rounds = length.rounds, .warmup = 1, .min_seconds = 0.02};
  const auto seconds = interleave(contenders, sampling);
  report_nearest(
      context,
      {.part = fmt::format("{}, n = {}", name_of(dtype), length.n),
       .setting = fmt::format("batch 1, 8 heads of 64, {}, n = {}", name_of(dtype), length.n),
       .baseline = "scaled_dot_product_attention, not causal, same dtype; the bar of a mask "
                   "that touches a share of the 64 x 64 blocks is " +
                   fmt::format("{:.2f} share + {:.3f}", bar.per_density, bar.fixed)},
      masks, bar, seconds);
}

void measure(Context& context) {
  for (const auto& [dtype, bar] : {std::pair{at::kFloat, DensityBar{0.90, 0.012}},
                                   std::pair{at::kBFloat16, DensityBar{0.50, 0.01}}}) {
    if (context.quick()) {
      compare(context, {512, 1, {0.25}}, dtype, bar);
      continue;
    }
    for (const auto& length : kLengths) compare(context, length, dtype, bar);
  }
}

const bool registered = add_claim({.name = "attention_forward",
                                   .group = "attention",
                                   .promise = "attention costs what its mask touches: forward",
                                   .measure = measure,
                                   .minutes = 8});

}  // namespace
}  // namespace torchlore::claims
