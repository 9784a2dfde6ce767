#include "dense_attention.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>

#include "kernels/attention_kernels.hpp"

namespace torchlore::attention {
namespace {

/// The density from which on LibTorch's attention is faster than the portable kernels: they took 2.5 to
/// 3.3 times as long for all tiles. With AVX2 and AVX-512 they took no longer than it (H4 D64, 1024
/// tokens, one thread, LibTorch held to the same instructions).
constexpr double kPortableCrossover = 0.4;
/// Pairs up to which a mask of all of them is made.
constexpr int64_t kMostPairs = int64_t{1} << 24;

bool runs_portable_kernels() {
  static const bool portable = &kernels::block_kernels() == kernels::block_kernels("portable");
  return portable;
}

/// LibTorch's backward takes several times as long as ours in these.
bool is_slow_backward(const Inputs& in) {
  const auto dtype = in.query.scalar_type();
  const bool recorded =
      at::GradMode::is_enabled() &&
      (in.query.requires_grad() || in.key.requires_grad() || in.value.requires_grad());
  return recorded && (dtype == at::kBFloat16 || dtype == at::kHalf);
}

template <typename F>
bool all_patterns(const BlockLayout& layout, const F& f) {
  for (int64_t b = 0; b < layout.batch(); ++b) {
    for (int64_t h = 0; h < layout.heads(); ++h) {
      if (!f(layout.pattern(b, h))) return false;
    }
  }
  return true;
}

/// What LibTorch gives to a query without keys depends on its kernel.
bool every_query_sees_a_key(const TileLayout& layout) {
  for (int64_t q = 0; q < layout.queries; ++q) {
    const auto row = static_cast<size_t>(q / layout.tile);
    const auto first = layout.kind.begin() + layout.row_start[row];
    const auto last = layout.kind.begin() + layout.row_start[row + 1];
    const auto place = static_cast<size_t>(q % layout.tile);
    if (std::none_of(first, last, [&](int32_t kind) {
          return kind == TileLayout::kFull ||
                 layout.bits[static_cast<size_t>(kind)].by_query[place] != 0;
        })) {
      return false;
    }
  }
  return true;
}

bool hides_nothing(const TileLayout& layout) {
  const auto tiles = [&](int64_t length) { return (length + layout.tile - 1) / layout.tile; };
  return static_cast<int64_t>(layout.kind.size()) == tiles(layout.queries) * tiles(layout.keys) &&
         std::all_of(layout.kind.begin(), layout.kind.end(),
                     [](int32_t kind) { return kind == TileLayout::kFull; });
}

}  // namespace

bool dense_is_faster(const Inputs& in, const Settings& settings) {
  const auto& layout = settings.layout();
  return in.query.is_cpu() && runs_portable_kernels() && !in.bias && !in.alibi_slopes &&
         settings.dropout == 0 && in.query.numel() > 0 && !is_slow_backward(in) &&
         layout.queries() * layout.keys() <= kMostPairs && layout.density() >= kPortableCrossover &&
         all_patterns(layout, every_query_sees_a_key);
}

at::Tensor dense_attention(const Inputs& in, const Settings& settings) {
  const auto& layout = settings.layout();
  std::optional<at::Tensor> visible;
  if (!all_patterns(layout, hides_nothing)) visible = layout.to_dense();
  return at::scaled_dot_product_attention(in.query, in.key, in.value, visible, /*dropout_p=*/0,
                                          /*is_causal=*/false, settings.scale,
                                          /*enable_gqa=*/in.query.size(1) != in.key.size(1));
}

}  // namespace torchlore::attention
