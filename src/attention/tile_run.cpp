#include "tile_run.hpp"

#include <ATen/Functions.h>

#include <algorithm>

#include "kernels/attention_kernels.hpp"

namespace torchlore::attention {
namespace {

/// Scores that one run may hold.
constexpr int64_t kMostScores = int64_t{1} << 22;

int64_t most_in_a_row(const TileLayout& layout) {
  int64_t most = 0;
  for (size_t i = 0; i + 1 < layout.row_start.size(); ++i) {
    most = std::max<int64_t>(most, layout.row_start[i + 1] - layout.row_start[i]);
  }
  return most;
}

/// Sets the visible pairs of one tile in `hidden`, [t, t], to false.
void show(const TileLayout& layout, int32_t kind, int64_t queries, int64_t keys, bool* hidden) {
  for (int64_t q = 0; q < queries; ++q) {
    const uint64_t word =
        kind == TileLayout::kFull
            ? ~uint64_t{0}
            : layout.bits[static_cast<size_t>(kind)].by_query[static_cast<size_t>(q)];
    for (int64_t k = 0; k < keys; ++k) hidden[q * layout.tile + k] = (word >> k & 1) == 0;
  }
}

}  // namespace

bool fits(const TileLayout& layout, int64_t matrices) {
  return most_in_a_row(layout) * matrices * layout.tile * layout.tile <= kMostScores;
}

std::vector<TileRun> runs_of(const TileLayout& layout, int64_t matrices) {
  const int64_t most = kMostScores / std::max<int64_t>(1, matrices * layout.tile * layout.tile);
  const auto start = [&](int64_t row) -> int64_t {
    return layout.row_start[static_cast<size_t>(row)];
  };
  const auto rows = static_cast<int64_t>(layout.row_start.size()) - 1;
  std::vector<TileRun> runs;
  for (int64_t first = 0, last = 0; first < rows; first = last) {
    do {
      ++last;
    } while (last < rows && start(last + 1) - start(first) <= most);
    runs.push_back({first, last - first, start(first), start(last) - start(first)});
  }
  return runs;
}

TileIndex::TileIndex(const TileLayout& layout, const TileRun& run, c10::Device device) {
  const int64_t tile = layout.tile;
  row = at::empty({run.entries}, at::kLong);
  query_tile = at::empty({run.entries}, at::kLong);
  key_tile = at::empty({run.entries}, at::kLong);
  hidden = at::ones({run.entries, tile, tile}, at::kBool);
  const auto start = [&](int64_t i) -> int64_t {
    return layout.row_start[static_cast<size_t>(run.first_row + i)] - run.first_entry;
  };
  int64_t most = 0;
  for (int64_t i = 0; i < run.rows; ++i) most = std::max(most, start(i + 1) - start(i));
  slots = at::full({run.rows, most}, run.entries, at::kLong);
  for (int64_t i = 0; i < run.rows; ++i) {
    const int64_t query = run.first_row + i;
    for (int64_t entry = start(i); entry < start(i + 1); ++entry) {
      const auto e = static_cast<size_t>(run.first_entry + entry);
      const int64_t key = layout.column[e];
      row.mutable_data_ptr<int64_t>()[entry] = i;
      query_tile.mutable_data_ptr<int64_t>()[entry] = query;
      key_tile.mutable_data_ptr<int64_t>()[entry] = key;
      slots.mutable_data_ptr<int64_t>()[i * most + entry - start(i)] = entry;
      show(layout, layout.kind[e], std::min(tile, layout.queries - query * tile),
           std::min(tile, layout.keys - key * tile),
           hidden.mutable_data_ptr<bool>() + entry * tile * tile);
    }
  }
  idle_queries = hidden.all(2, /*keepdim=*/true);
  idle_keys = hidden.all(1).unsqueeze(2);
  for (auto* tensor : {&row, &query_tile, &key_tile, &hidden, &idle_queries, &idle_keys, &slots}) {
    *tensor = tensor->to(device);
  }
}

at::Tensor dropout_factors(const TileIndex& tiles, const HeadRange& range, double dropout,
                           uint64_t seed) {
  const int64_t tile = tiles.hidden.size(1);
  const auto query_tile = tiles.query_tile.cpu();
  const auto key_tile = tiles.key_tile.cpu();
  auto factors =
      at::empty({range.batches, range.heads, query_tile.size(0), tile, tile}, at::kFloat);
  const auto kept = static_cast<float>(1 / (1 - dropout));
  auto* out = factors.mutable_data_ptr<float>();
  for (int64_t i = 0; i < range.batches * range.heads; ++i) {
    const int64_t b = range.batch + i / range.heads;
    const int64_t h = range.head + i % range.heads;
    for (int64_t c = 0; c < query_tile.size(0); ++c) {
      const int64_t query = query_tile.const_data_ptr<int64_t>()[c] * tile;
      const int64_t key = key_tile.const_data_ptr<int64_t>()[c] * tile;
      for (int64_t j = 0; j < tile * tile; ++j) {
        const float number = kernels::dropout_number(seed, b * range.all_heads + h,
                                                     query + j / tile, key + j % tile);
        *out++ = number < dropout ? 0.0F : kept;
      }
    }
  }
  return factors;
}

}  // namespace torchlore::attention
