#include "attention_tasks.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>

#include "torchlore/core/philox.hpp"

namespace torchlore::kernels {
namespace {

// The last 256 streams of Philox belong to the library.
constexpr uint32_t kDropoutStream = 0xFFFF'FF10;

static_assert(sizeof(TileBits) == kBitmapWords * sizeof(uint64_t));

TilePattern pattern_of(const TileLayout& layout) {
  return {.queries = layout.queries,
          .keys = layout.keys,
          .row_start = layout.row_start.data(),
          .column = layout.column.data(),
          .kind = layout.kind.data(),
          .column_start = layout.column_start.data(),
          .row = layout.row.data(),
          .column_kind = layout.column_kind.data(),
          .bits = layout.bits.empty() ? nullptr : layout.bits.front().by_key.data()};
}

Dropout dropout_of(const AttentionProblem& problem, int64_t unit) {
  if (problem.dropout == 0) return {};
  return {.philox = philox_kernels().fill,
          .counter = {.step = static_cast<uint32_t>(unit),
                      .stream = kDropoutStream,
                      .key = {static_cast<uint32_t>(problem.dropout_seed),
                              static_cast<uint32_t>(problem.dropout_seed >> 32)}},
          .threshold = static_cast<uint32_t>(std::ceil(problem.dropout * 0x1p24)),
          .growth = 1 / (1 - problem.dropout)};
}

/// Tiles of one unit, those with much work first.
std::vector<int64_t> tiles_by_work(const std::vector<int32_t>& start) {
  std::vector<int64_t> tiles(start.empty() ? 0 : start.size() - 1);
  std::iota(tiles.begin(), tiles.end(), int64_t{0});
  const auto work = [&](int64_t tile) {
    const auto i = static_cast<size_t>(tile);
    return start[i + 1] - start[i];
  };
  std::stable_sort(tiles.begin(), tiles.end(),
                   [&](int64_t a, int64_t b) { return work(a) > work(b); });
  return tiles;
}

}  // namespace

int64_t scalar_bytes(Element element) { return element == Element::f64 ? 8 : 4; }

void* scalars_at(const void* data, int64_t count, Element element) {
  if (data == nullptr) return nullptr;
  return const_cast<char*>(static_cast<const char*>(data)) + count * scalar_bytes(element);
}

Matrix rows_of(const Rows& rows, Element element, int64_t batch, int64_t head) {
  const int64_t bytes =
      element == Element::f16 || element == Element::bf16 ? 2 : scalar_bytes(element);
  const int64_t first = batch * rows.batch_stride + head * rows.head_stride;
  return {static_cast<char*>(rows.data) + first * bytes, rows.row_stride};
}

const TileLayout& layout_of(const AttentionProblem& problem, int64_t batch, int64_t head) {
  return *problem.layouts[batch * problem.heads + head];
}

AttentionHead head_of(const AttentionProblem& problem, int64_t batch, int64_t head) {
  const int64_t key_head = head / (problem.heads / problem.key_heads);
  const int64_t bias = batch * problem.bias_batch_stride + head * problem.bias_head_stride;
  AttentionHead result;
  result.pattern = pattern_of(layout_of(problem, batch, head));
  result.head_dim = problem.head_dim;
  result.value_dim = problem.value_dim;
  result.scale = problem.scale;
  result.slope = problem.alibi_slopes != nullptr ? double{problem.alibi_slopes[head]} : 0;
  result.query_offset = problem.query_offset;
  result.bias = problem.bias != nullptr ? problem.bias + bias : nullptr;
  result.bias_stride = problem.bias_row_stride;
  result.dropout = dropout_of(problem, batch * problem.heads + head);
  result.q = rows_of(problem.q, problem.element, batch, head);
  result.k = rows_of(problem.k, problem.element, batch, key_head);
  result.v = rows_of(problem.v, problem.element, batch, key_head);
  return result;
}

const TileKernels& tile_kernels(const AttentionProblem& problem, const BlockKernels* kernels) {
  const bool large = problem.layouts[0]->tile == 64;
  return (kernels != nullptr ? *kernels : block_kernels())
      .tiles[static_cast<size_t>(problem.element)][large ? 1 : 0];
}

std::vector<TileTask> ordered_by_work(const std::vector<const std::vector<int32_t>*>& starts) {
  std::vector<int64_t> units(starts.size());
  std::iota(units.begin(), units.end(), int64_t{0});
  std::stable_sort(units.begin(), units.end(), [&](int64_t a, int64_t b) {
    return starts[static_cast<size_t>(a)]->back() > starts[static_cast<size_t>(b)]->back();
  });
  std::map<const std::vector<int32_t>*, std::vector<int64_t>> orders;
  std::vector<TileTask> tasks;
  for (const int64_t unit : units) {
    const auto* start = starts[static_cast<size_t>(unit)];
    const auto [order, added] = orders.try_emplace(start);
    if (added) order->second = tiles_by_work(*start);
    for (const int64_t tile : order->second) tasks.push_back({unit, tile});
  }
  return tasks;
}

void run_tasks(int64_t count, detail::BufferPool& pool, int64_t bytes,
               const std::function<void(int64_t, void*)>& body) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    const auto scratch = pool.empty({(bytes + 3) / 4});
    void* data = scratch.mutable_data_ptr();
    for (int64_t task = next++; task < count; task = next++) body(task, data);
  });
}

float dropout_number(uint64_t seed, int64_t batch_head, int64_t query, int64_t key) {
  const PhiloxStream stream(seed, batch_head, kDropoutStream);
  const auto block = static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(query / 4);
  return PhiloxStream::uniform_of<float>(stream.block(block), static_cast<uint64_t>(query % 4));
}

}  // namespace torchlore::kernels
