// What the layout of a long sequence takes: time from the mask to rows, transpose and bits, and bytes.
#include <cstdint>
#include <string>

#include "claim.hpp"
#include "harness/timing.hpp"
#include "torchlore/attention/block_layout.hpp"

namespace torchlore::claims {
namespace {

constexpr double kBarMilliseconds = 20;
constexpr double kBarMegabytes = 4;

/// A new mask each time: one that was laid out before would give what it kept.
MaskSpec long_mask() {
  return mask::causal() & (mask::window(512) | mask::sinks(4) | mask::random_blocks(8, 1));
}

template <typename T>
int64_t bytes_of(const std::vector<T>& values) {
  return static_cast<int64_t>(values.capacity() * sizeof(T));
}

int64_t bytes_of(const TileLayout& tiles) {
  return bytes_of(tiles.row_start) + bytes_of(tiles.column) + bytes_of(tiles.kind) +
         bytes_of(tiles.column_start) + bytes_of(tiles.row) + bytes_of(tiles.column_kind) +
         bytes_of(tiles.bits);
}

void measure(Context& context) {
  const int64_t n = context.quick() ? 4'096 : 131'072;
  const auto setting =
      "n = " + std::to_string(n) +
      ", causal, window 512, 4 sinks, 8 random blocks of 64 a row, transpose included";
  const std::vector<Contender> contenders = {
      timed("BlockLayout::build", [&] { BlockLayout::build(long_mask(), n, n); })};
  auto seconds = interleave(contenders, Sampling::of(context));
  for (auto& sample : seconds[0]) sample *= 1e3;
  context.report({.part = "time",
                  .setting = setting,
                  .baseline = "nothing: the whole call",
                  .measured = median_estimate(seconds[0]),
                  .unit = "ms",
                  .bar = kBarMilliseconds,
                  .note = "on one thread: a mask for one head is one pattern"});

  const auto layout = BlockLayout::build(long_mask(), n, n);
  const auto& tiles = layout.pattern(0, 0);
  const double megabytes = static_cast<double>(bytes_of(tiles)) / 1e6;
  context.report({.part = "memory",
                  .setting = setting,
                  .baseline = "nothing: all that the layout holds",
                  .measured = {megabytes, megabytes, megabytes},
                  .unit = "MB",
                  .bar = kBarMegabytes,
                  .note = std::to_string(tiles.column.size()) + " tiles of 64 x 64, " +
                          std::to_string(tiles.bits.size()) + " different partial ones"});
}

const bool registered = add_claim({.name = "attention_layout",
                                   .group = "attention",
                                   .promise = "the layout of a long sequence takes milliseconds",
                                   .measure = measure,
                                   .threads_matter = false});

}  // namespace
}  // namespace torchlore::claims
