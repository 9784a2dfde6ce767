#include "lowering.hpp"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <utility>

#include "interval_layout.hpp"
#include "key_ranges.hpp"
#include "mask_node.hpp"

namespace torchlore::attention {
namespace {

using detail::Overloaded;
using detail::Ranges;
using detail::Span;

// What things cost, in pairs of a tile: a pair of a shift reads a row of its own, and rows that are
// taken together, or outputs that are merged, are copied.
constexpr double kShiftedPair = 2;
constexpr double kCopiedRow = 16;
/// A plan must be clearly cheaper than the tiles.
constexpr double kWorthIt = 0.8;

struct Lengths {
  int64_t queries;
  int64_t keys;
};

struct PricedPlan {
  Plan plan;
  double cost = 0;
};

double cost_of(const TileLayout& tiles) {
  return static_cast<double>(tiles.column.size()) * static_cast<double>(tiles.tile * tiles.tile);
}

// ---- masks that compare positions by their distance alone ----

/// The distances (query - key, both as they are counted in the tensors) that the leaf shows; some may
/// lie outside of `whole`. `offset` is the position of query 0.
Ranges distances_of(const nodes::Causal&, int64_t offset, Span whole) {
  return {{-offset, whole.end}};
}
Ranges distances_of(const nodes::Window& of, int64_t offset, Span) {
  return {{1 - of.size - offset, of.size - offset}};
}
Ranges distances_of(const nodes::Dilated& of, int64_t offset, Span whole) {
  Ranges distances;
  const int64_t least = (whole.begin + offset) / of.dilation - 1;
  const int64_t most = (whole.end + offset) / of.dilation + 1;
  for (int64_t i = std::max(1 - of.size, least); i < std::min(of.size, most); ++i) {
    const int64_t distance = i * of.dilation - offset;
    append(distances, {distance, distance + 1});
  }
  return distances;
}
Ranges distances_of(const nodes::LogSparse&, int64_t offset, Span whole) {
  Ranges distances{{-offset, 1 - offset}};
  for (int64_t d = 1; d - offset < whole.end; d *= 2) {
    append(distances, {d - offset, d - offset + 1});
  }
  return distances;
}

std::optional<Ranges> distances_in(const MaskNode& node, const Lengths& of, Span whole);

std::optional<std::vector<Ranges>> distances_in(const std::vector<MaskSpec>& parts,
                                                const Lengths& of, Span whole) {
  std::vector<Ranges> all;
  for (const auto& part : parts) {
    auto distances = distances_in(part.node(), of, whole);
    if (!distances) return std::nullopt;
    all.push_back(std::move(*distances));
  }
  return all;
}

/// Those that a mask shows among `whole`; none if something else decides, too.
std::optional<Ranges> distances_in(const MaskNode& node, const Lengths& of, Span whole) {
  const auto joined = [&](const std::vector<MaskSpec>& parts,
                          Ranges (*join)(const Ranges&, const Ranges&)) -> std::optional<Ranges> {
    const auto all = distances_in(parts, of, whole);
    if (!all) return std::nullopt;
    return std::accumulate(std::next(all->begin()), all->end(), all->front(), join);
  };
  const auto leaf = [&](const auto& mask) -> std::optional<Ranges> {
    if constexpr (requires { distances_of(mask, 0, whole); }) {
      const int64_t offset = detail::query_offset(mask.align, of.queries, of.keys, node.value);
      return detail::intersection(distances_of(mask, offset, whole), {whole});
    } else {
      return std::nullopt;
    }
  };
  return std::visit(
      Overloaded{[&](const nodes::Everything&) -> std::optional<Ranges> { return Ranges{whole}; },
                 [&](const nodes::And& all) { return joined(all.parts, detail::intersection); },
                 [&](const nodes::Or& any) { return joined(any.parts, detail::united); },
                 [&](const nodes::Not& no) -> std::optional<Ranges> {
                   const auto distances = distances_in(no.part.node(), of, whole);
                   if (!distances) return std::nullopt;
                   return detail::complement(*distances, whole);
                 },
                 leaf},
      node.value);
}

/// Pairs of queries and keys at this distance.
int64_t pairs_at(int64_t distance, const Lengths& of) {
  return std::max<int64_t>(
      0, std::min(of.queries, of.keys + distance) - std::max<int64_t>(0, distance));
}

/// Few distances, one by one.
std::optional<PricedPlan> along_shifts(const Ranges& distances, const Lengths& of) {
  if (detail::count(distances) > kernels::kMostShifts) return std::nullopt;
  ShiftedPart part;
  double pairs = 0;
  for (const Span span : distances) {
    for (int64_t d = span.begin; d < span.end; ++d) {
      part.shifts.push_back(-d);
      pairs += static_cast<double>(pairs_at(d, of));
    }
  }
  return PricedPlan{{{std::move(part)}}, kShiftedPair * pairs};
}

/// The keys at the distances of one span.
std::vector<Span> band(Span distances, const Lengths& of) {
  std::vector<Span> spans(static_cast<size_t>(of.queries));
  for (int64_t i = 0; i < of.queries; ++i) {
    spans[static_cast<size_t>(i)] =
        detail::overlap({i - distances.end + 1, i - distances.begin + 1}, {0, of.keys});
  }
  return spans;
}

PricedPlan tiled(TiledPart part, int64_t copied_rows) {
  const double cost = cost_of(*part.tiles) + kCopiedRow * static_cast<double>(copied_rows);
  return {{{std::move(part)}}, cost};
}

/// Neighbouring distances as tiles, the others one by one.
std::optional<PricedPlan> bands_and_shifts(const Ranges& distances, const Lengths& of) {
  constexpr int64_t long_enough = 32;
  Ranges rest;
  PricedPlan result;
  for (const Span span : distances) {
    if (span.size() < long_enough) {
      rest.push_back(span);
      continue;
    }
    auto tiles = std::make_shared<const TileLayout>(interval_layout(of.keys, band(span, of)));
    result.cost += cost_of(*tiles) + kCopiedRow * static_cast<double>(of.queries);
    result.plan.parts.emplace_back(TiledPart{.tiles = std::move(tiles)});
  }
  if (rest.empty()) return result;
  auto shifts = along_shifts(rest, of);
  if (!shifts) return std::nullopt;
  result.cost += shifts->cost;
  result.plan.parts.push_back(std::move(shifts->plan.parts.front()));
  return result;
}

/// 0 … count - 1, those of each remainder by `step` together; `first`: the remainder that comes first.
std::vector<int64_t> by_remainder(int64_t count, int64_t step, int64_t first) {
  std::vector<int64_t> order;
  order.reserve(static_cast<size_t>(count));
  for (int64_t r = 0; r < step; ++r) {
    for (int64_t i = (first + r) % step; i < count; i += step) order.push_back(i);
  }
  return order;
}

/// Where distances are neighbours but for a common step: tiles of every step-th token.
std::optional<PricedPlan> by_steps(const Ranges& distances, const Lengths& of) {
  if (distances.size() < 2) return std::nullopt;
  const int64_t step = distances[1].begin - distances[0].begin;
  const int64_t first = distances.front().begin;
  for (size_t i = 0; i < distances.size(); ++i) {
    const int64_t distance = first + static_cast<int64_t>(i) * step;
    if (distances[i] != Span{distance, distance + 1}) return std::nullopt;
  }
  // Query i sees keys of one remainder: that of i - last.
  const int64_t last = first + (static_cast<int64_t>(distances.size()) - 1) * step;
  const int64_t key_of_zero = ((-last) % step + step) % step;
  TiledPart part;
  part.queries = by_remainder(of.queries, step, 0);
  part.keys = by_remainder(of.keys, step, key_of_zero);
  std::vector<Span> spans;
  int64_t row = 0;  // of the first key of the remainder
  for (int64_t remainder = 0; remainder < step; ++remainder) {
    const int64_t key = (key_of_zero + remainder) % step;
    const int64_t count = key < of.keys ? (of.keys - key - 1) / step + 1 : 0;
    const auto row_of = [&](int64_t k) { return row + (k < 0 ? 0 : std::min(k / step, count)); };
    for (int64_t query = remainder; query < of.queries; query += step) {
      spans.push_back({row_of(query - last), row_of(query - first + step)});
    }
    row += count;
  }
  part.tiles = std::make_shared<const TileLayout>(interval_layout(of.keys, std::move(spans)));
  return tiled(std::move(part), of.queries + of.keys);
}

std::optional<PricedPlan> by_distance(const MaskNode& node, const Lengths& of) {
  const auto distances = distances_in(node, of, {1 - of.keys, of.queries});
  if (!distances || distances->empty()) return std::nullopt;
  std::optional<PricedPlan> best;
  for (const auto candidate : {along_shifts, bands_and_shifts, by_steps}) {
    auto plan = candidate(*distances, of);
    if (plan && (!best || plan->cost < best->cost)) best = std::move(plan);
  }
  return best;
}

// ---- every stride-th key ----

/// The parts of a conjunction; a mask that is none is its only part.
std::vector<MaskSpec> conjuncts(const MaskSpec& spec) {
  const auto* all = std::get_if<nodes::And>(&spec.node().value);
  return all != nullptr ? all->parts : std::vector<MaskSpec>{spec};
}

/// Narrows the keys of each query to those that the mask shows. Returns false if they need not be
/// neighbours.
bool narrow(std::vector<Span>& spans, const MaskNode& node, const Lengths& of) {
  const auto each = [&](const auto& keys_at) {
    for (size_t i = 0; i < spans.size(); ++i) {
      spans[i] = detail::overlap(spans[i], keys_at(static_cast<int64_t>(i)));
    }
    return true;
  };
  const auto offset = [&](const auto& mask) {
    return detail::query_offset(mask.align, of.queries, of.keys, node.value);
  };
  return std::visit(
      Overloaded{[&](const nodes::Everything&) { return true; },
                 [&](const nodes::Causal& mask) {
                   const int64_t at = offset(mask);
                   return each([&](int64_t query) { return Span{0, query + at + 1}; });
                 },
                 [&](const nodes::Window& mask) {
                   const int64_t at = offset(mask);
                   return each([&](int64_t query) {
                     return Span{query + at - mask.size + 1, query + at + mask.size};
                   });
                 },
                 [&](const nodes::Sinks& mask) {
                   return each([&](int64_t) { return Span{0, mask.count}; });
                 },
                 [&](const nodes::Padding& mask) {
                   if (mask.lengths.size() != 1) return false;
                   return each([&](int64_t) { return Span{0, mask.lengths.front()}; });
                 },
                 [&](const nodes::Documents& mask) {
                   if (mask.bounds.size() != 1) return false;
                   const auto& bounds = mask.bounds.front();
                   const int64_t at = offset(mask);
                   return each([&](int64_t query) {
                     const auto end = std::upper_bound(bounds.begin(), bounds.end(), query + at);
                     // Nothing before the first and behind the last.
                     return Span{end == bounds.begin() ? 0 : *std::prev(end),
                                 end == bounds.begin() ? 0
                                 : end == bounds.end() ? *std::prev(end)
                                                       : *end};
                   });
                 },
                 [](const auto&) { return false; }},
      node.value);
}

/// The keys of strided and strided_runs; none for other masks, and where all keys are among them.
std::optional<nodes::StridedRuns> runs_of(const MaskNode& node) {
  nodes::StridedRuns runs{.stride = 1, .first = 0, .run = 1};
  if (const auto* single = std::get_if<nodes::Strided>(&node.value)) {
    runs = {.stride = single->stride, .first = single->first, .run = 1};
  } else if (const auto* several = std::get_if<nodes::StridedRuns>(&node.value)) {
    runs = *several;
  }
  return runs.run < runs.stride ? std::optional(runs) : std::nullopt;
}

/// One such mask, joined with masks that show each query keys that are neighbours.
std::optional<PricedPlan> by_stride(const MaskSpec& spec, const Lengths& of) {
  std::optional<nodes::StridedRuns> runs;
  std::vector<Span> spans(static_cast<size_t>(of.queries), Span{0, of.keys});
  for (const auto& part : conjuncts(spec)) {
    const auto found = runs_of(part.node());
    if (found && !runs) {
      runs = found;
    } else if (!narrow(spans, part.node(), of)) {
      return std::nullopt;
    }
  }
  if (!runs) return std::nullopt;
  // How many of the keys before `key` are taken.
  const auto row = [&](int64_t key) {
    return key / runs->stride * runs->run +
           std::clamp<int64_t>(key % runs->stride - runs->first, 0, runs->run);
  };
  TiledPart part;
  for (int64_t key = 0; key < of.keys; ++key) {
    if (row(key + 1) > row(key)) part.keys.push_back(key);
  }
  if (part.keys.empty()) return std::nullopt;
  for (Span& span : spans) {
    span = {row(std::max<int64_t>(0, span.begin)), row(std::max<int64_t>(0, span.end))};
  }
  const auto taken = static_cast<int64_t>(part.keys.size());
  part.tiles = std::make_shared<const TileLayout>(interval_layout(taken, std::move(spans)));
  return tiled(std::move(part), taken);
}

// ---- unions ----

/// Whether a part of the mask is of the kinds that tiles express badly.
bool has_gaps(const MaskNode& node) {
  const auto* dilated = std::get_if<nodes::Dilated>(&node.value);
  if (dilated != nullptr && dilated->dilation > 1) return true;
  if (std::holds_alternative<nodes::LogSparse>(node.value) || runs_of(node)) return true;
  const auto parts = detail::parts_of(node);
  return std::any_of(parts.begin(), parts.end(),
                     [](const MaskSpec& part) { return has_gaps(part.node()); });
}

std::optional<PricedPlan> alone(const MaskSpec& spec, const Lengths& of) {
  auto plan = by_distance(spec.node(), of);
  return plan ? std::move(plan) : by_stride(spec, of);
}

/// Joins all masks of a list; every pair is visible to an empty one.
MaskSpec joined(const std::vector<MaskSpec>& parts) {
  if (parts.empty()) return MaskSpec();
  return std::accumulate(std::next(parts.begin()), parts.end(), parts.front(),
                         [](const MaskSpec& a, const MaskSpec& b) { return a & b; });
}

/// (one | others) & narrowing = (one & narrowing) | (others & narrowing & !one): the first by a plan,
/// the second by tiles.
std::optional<PricedPlan> split(const MaskSpec& one, const std::vector<MaskSpec>& others,
                                const std::vector<MaskSpec>& narrowing, const BlockLayout& whole) {
  const Lengths of{whole.queries(), whole.keys()};
  auto list = narrowing;
  list.push_back(one);
  auto result = alone(joined(list), of);
  if (!result) return std::nullopt;
  list.back() = !one;
  list.push_back(std::accumulate(std::next(others.begin()), others.end(), others.front(),
                                 [](const MaskSpec& a, const MaskSpec& b) { return a | b; }));
  auto rest =
      BlockLayout::build(joined(list), of.queries, of.keys, {.block_size = whole.block_size()});
  auto tiles = std::make_shared<const TileLayout>(rest.pattern(0, 0));
  result->cost += cost_of(*tiles) + kCopiedRow * static_cast<double>(of.queries);
  result->plan.parts.emplace_back(TiledPart{.tiles = std::move(tiles)});
  return result;
}

/// The cheapest way to take one mask out of a union.
std::optional<PricedPlan> by_union(const MaskSpec& spec, const BlockLayout& whole) {
  auto narrowing = conjuncts(spec);
  const auto is_union = [](const MaskSpec& part) {
    return std::holds_alternative<nodes::Or>(part.node().value);
  };
  if (std::count_if(narrowing.begin(), narrowing.end(), is_union) != 1) return std::nullopt;
  const auto found = std::find_if(narrowing.begin(), narrowing.end(), is_union);
  const MaskSpec any = *found;
  narrowing.erase(found);
  const auto parts = detail::parts_of(any.node());
  std::optional<PricedPlan> best;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!has_gaps(parts[i].node())) continue;
    auto others = parts;
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(i));
    auto plan = split(parts[i], others, narrowing, whole);
    if (plan && (!best || plan->cost < best->cost)) best = std::move(plan);
  }
  return best;
}

}  // namespace

std::optional<Plan> lower(const BlockLayout& layout) {
  const auto& spec = layout.spec();
  const auto& node = spec.node();
  if (layout.queries() == 0 || layout.keys() == 0) return std::nullopt;
  if (!has_gaps(node) || node.random || detail::has_predicate(node) ||
      detail::depends_on_batch(node) || detail::depends_on_head(node)) {
    return std::nullopt;
  }
  auto plan = alone(spec, {layout.queries(), layout.keys()});
  if (!plan) plan = by_union(spec, layout);
  if (!plan || plan->cost > kWorthIt * cost_of(layout.pattern(0, 0))) return std::nullopt;
  return std::move(plan->plan);
}

}  // namespace torchlore::attention
